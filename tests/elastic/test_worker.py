"""An encoder in worker processes of its own, over weights that they share."""

import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from foreserve.app import App
from foreserve.services.encoder import Encoder
from tests.gateway.house import serving


@pytest.mark.slow
def test_two_workers_share_the_weights_and_answer_alike(sentences: Path) -> None:
    kind = Encoder(str(sentences), replicas=2, elastic=["merge:2"], measure_s=0.05, threads=1, max_running=4)
    app = App(words=kind, state={"history": False})
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        infos = [None]
        for _ in range(300):
            infos = house.ask(lambda running: [each.info for each in running.services["words"].replicas.all])
            if None not in infos:
                break
            time.sleep(0.1)
        assert [info.facts["weights_shared"] for info in infos] == [True, True]
        asked = {"model": "words", "input": ["a b c"] * 12}
        found = client.post("/v1/embeddings", json=asked)
        assert found.status_code == 200, found.text
        vectors = np.array([each["embedding"] for each in found.json()["data"]])
        np.testing.assert_allclose(vectors, vectors[:1].repeat(12, 0), atol=1e-5)
        assert kind.settings.policy_options["profile"]["seconds"].keys() == {"merge:2", "plain"}
