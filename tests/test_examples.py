"""The example files are read, checked, and do what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from foreserve.appfile import load_app_file
from foreserve.pipelines.shapes import words
from tests.gateway.house import serving

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_a_function_in_five_lines():
    app = load_app_file(str(EXAMPLES / "function.py"))
    with serving(app) as house:
        asked = {"query": "blue sky", "documents": ["a blue car", "the sky is blue"]}
        assert httpx.post(f"{house.url}/rank", json=asked, timeout=20).json() == [1, 2]


@pytest.mark.slow
def test_a_torch_model_on_shared_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("HOME", str(tmp_path))
    app = load_app_file(str(EXAMPLES / "torch_function.py"))
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        assert client.post("/digit", json={"pixels": [0.5] * 64}).json() in range(10)
        short = client.post("/digit", json={"pixels": [0.5] * 63})
        assert (short.status_code, "length >= 64" in short.json()["error"]["message"]) == (400, True)


async def test_passages_are_found_by_words_while_the_query_is_written():
    app = load_app_file(str(EXAMPLES / "rag.py"))
    retrieval = sys.modules["retrieval"]
    index, scores = retrieval.index, np.zeros(retrieval.index.size)
    for term in ("penicillin", "nobody", "discovered"):
        index.add(term, scores)
    assert "Penicillin" in retrieval.passages[int(scores.argmax())]
    assert set(app.pipelines) == {"cited"}
    assert list(app.pipelines["cited"].plan.outputs) == ["answer", "citations"]


def test_a_fact_checker_of_two_levels():
    app = load_app_file(str(EXAMPLES / "fact_checking.py"))
    assert words(app.pipelines["checked"].plan.outputs["verdicts"].kind) == "Stream[dict[str, object]]"
    assert words(app.pipelines["checked"].plan.shown["queries"].kind) == "Stream[Text]"


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    ("file", "name", "output"), [("rag.py", "cited", "citations"), ("fact_checking.py", "checked", "verdicts")]
)
def test_pipelines_on_real_models(file: str, name: str, output: str):
    app = load_app_file(str(EXAMPLES / file))
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=300) as client:
        asked = {"question": "When was the Eiffel Tower completed?"}
        result = client.post(f"/v1/pipelines/{name}", json=asked).json()["result"]
        assert result["answer"]
        assert result[output]
        chat = {"model": name, "messages": [{"role": "user", "content": asked["question"]}]}
        said = client.post("/v1/chat/completions", json=chat).json()
        assert said["choices"][0]["message"]["content"] == result["answer"]


@pytest.mark.slow
@pytest.mark.model
def test_an_encoder():
    pytest.importorskip("torch")
    app = load_app_file(str(EXAMPLES / "encoder.py"))
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        asked = {"model": "mini", "query": "what barks?", "documents": ["a cat", "a dog barks", "the sky"]}
        assert client.post("/v1/rerank", json=asked).json()["results"][0]["index"] == 1
