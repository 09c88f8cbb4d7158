"""Encoders and graphs as stages of a pipeline, by small ones in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foreserve as fs
from foreserve.clock import now
from foreserve.core import OutcomeKind, Request
from foreserve.errors import BadRequest, ConfigError, RequestError
from foreserve.graphs.asked import Query
from foreserve.running import Running
from foreserve.services.encoder_reading import Answered
from foreserve.tensors import array, tensor_of
from tests.elastic import folders
from tests.services.graph_app import Net, words

TEXTS = ["the river", "a great house"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("stages")
    for name in ("words", "images"):
        (base / name).mkdir()
    folders.sentences(base / "words", prompts={"query": "find "})
    folders.vision(base / "images")
    folders.task(base / "tasks" / "mood", ["bad", "good"], {"plain": 0.8}, ())
    return base


def encoder(base: Path, name: str = "words", **more: Any) -> fs.Encoder:
    return fs.Encoder(str(base / name), launcher="inline", measure_s=0.01, max_running=4, threads=1, **more)


def app(base: Path) -> fs.App:
    plain, moods, net = encoder(base), encoder(base, tasks=str(base / "tasks")), fs.Graph(Net, **words())
    embed, classify, query = fs.embed(plain), fs.classify(moods, "mood"), fs.query(net)

    @fs.stage
    async def nodes(text: str) -> list[int]:
        return [len(text), 3]

    @fs.pipeline
    def read(text: Any) -> Any:
        def each(line: Any) -> Any:
            return {"vector": embed(line), "mood": classify(line), "rows": query(nodes(line))}

        return text.split(fs.lines).map(each, ordered=True)

    @fs.pipeline
    def ask(nodes: list[int]) -> Any:
        return query(nodes)

    return fs.App(words=plain, moods=moods, net=net, read=read, ask=ask, state={"history": False})


@pytest.fixture
async def running(base: Path) -> AsyncIterator[Running]:
    running = app(base).run()
    await running.start()
    yield running
    await running.stop(1.0)
    running.ledger.check(idle=True)


def request(id: str = "r", service: str = "read") -> Request:
    return Request(id=id, service=service, payload=None, arrival=now())


async def alone(running: Running, service: str, payload: Any, about: Any = None) -> Any:
    asked = Request(id=f"alone-{service}-{now()}", service=service, payload=payload, arrival=now(), about=about)
    found = [event async for events in running.services[service].submit(asked) for event in events]
    assert len(found) == 1
    return found[0]


async def test_they_answer_a_stage_as_they_answer_alone(running: Running):
    inputs = {"text": "\n".join(TEXTS)}
    found = await running.pipelines["read"].submit(request(), inputs, listens=False).result()
    kind: Any = running.services["words"].kind
    for text, each in zip(TEXTS, found, strict=True):
        payload = kind.texts([text], "text")[0]
        vector: Answered = await alone(running, "words", payload, kind.about(payload))
        np.testing.assert_allclose(each["vector"], np.frombuffer(vector.encoding.data, "<f4"), atol=1e-6)
        rows = await alone(running, "net", Query(tensor_of(np.array([len(text), 3]))))
        np.testing.assert_allclose(each["rows"], np.frombuffer(rows.rows.data, "<f4").reshape(2, 3), atol=1e-6)
        assert each["mood"] in ("bad", "good")
    assert running.ledger.ended(OutcomeKind.DONE, child=True) == 6


async def test_what_a_graph_does_not_have_fails_the_request_in_words(running: Running):
    for nodes, said in (([], "valid: a list of ids"), ([2**70], "valid: a list of ids"), ([99], "99")):
        asked = running.pipelines["ask"].submit(request(f"r{len(said)}{nodes}", "ask"), {"nodes": nodes}, listens=False)
        with pytest.raises(RequestError, match=said):
            await asked.result()
    assert running.ledger.ended(OutcomeKind.FAILED) == 3


def pipeline_of(stage: Any) -> Any:
    @fs.pipeline
    def one(text: str) -> Any:
        return stage(text)

    return one


@pytest.mark.parametrize("nodes", [[1.7], [True], [True, 2], ["5"], [[1]], [2**63], 3, None])
async def test_a_graph_is_asked_for_whole_numbers_alone(nodes: Any):
    stage: Any = fs.query(fs.Graph(Net, **words()))
    with pytest.raises(BadRequest, match="valid: a list of ids, whole numbers"):
        stage.asked(request(), None, {"nodes": nodes})
    asked = stage.asked(request(), None, {"nodes": np.array([1, 2], np.int32)})
    assert array(asked.payload.ids).tolist() == [1, 2]


async def test_what_an_encoder_does_not_do_is_told_before_it_starts(base: Path):
    moods = encoder(base, tasks=str(base / "tasks"))
    images = encoder(base, "images")
    for stage, kind, said in (
        (fs.classify(moods, "moods"), moods, "stage 'moods': no task 'moods'; did you mean 'mood'"),
        (fs.embed(images), images, "reads images, and this stage has one text"),
    ):
        running = fs.App(one=pipeline_of(stage), served=kind, state={"history": False}).run()
        with pytest.raises(ConfigError, match=said):
            await running.start()


def test_what_is_no_such_service_is_told_when_it_is_written(base: Path):
    with pytest.raises(ConfigError, match="embed 'embed': int is no encoder"):
        fs.embed(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="query 'query': int is no graph"):
        fs.query(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name a task of the encoder"):
        fs.classify("words", "")
    with pytest.raises(ConfigError, match="`max_staleness_ms` is -1"):
        fs.query("net", max_staleness_ms=-1)
    with pytest.raises(ConfigError, match="'net' is a graph, not a encoder"):
        fs.App(one=pipeline_of(fs.embed("net")), net=fs.Graph(Net, **words()))
