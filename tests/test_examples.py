"""The example files are read, checked, and do what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import msgspec
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
    chat = app.services["chat"]  # what runs beside a request shall not change its answer
    chat.settings = msgspec.structs.replace(chat.settings, exact=True)
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=300) as client:
        asked = {"question": "When was the Eiffel Tower completed?"}
        result = client.post(f"/v1/pipelines/{name}", json=asked).json()["result"]
        assert result["answer"]
        assert result[output]
        body = {"model": name, "messages": [{"role": "user", "content": asked["question"]}]}
        said = client.post("/v1/chat/completions", json=body).json()
        assert said["choices"][0]["message"]["content"] == result["answer"]


def test_a_graph_of_typed_and_timed_payments(tmp_path: Path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_geometric")
    from safetensors.torch import load_file

    file = tmp_path / "fraud.py"
    file.write_text((EXAMPLES / "graphs" / "fraud.py").read_text())
    app = load_app_file(str(file))
    module = _module_of(file)
    assert module.train(epochs=3) < 2.0
    app = load_app_file(str(file))
    kind = app.services["fraud"]
    kind.settings = msgspec.structs.replace(kind.settings, launcher="inline")
    data, model = module.history(), module.Fraud()
    model.load_state_dict(load_file(tmp_path / "fraud.safetensors"))
    payment = {"source": 3, "target": 5, "attributes": [0.2, 1.0], "type": "card:pays:merchant", "op": "insert_edge"}
    back = {**payment, "source": 5, "target": 3, "type": "merchant:paid_by:card"}
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        assert client.post("/v1/graphs/fraud/updates", json={"changes": [payment, back]}).status_code == 200
        served = client.post("/v1/graphs/fraud/query", json={"nodes": [*range(400)], "max_staleness_ms": 500}).json()
    for key, ends in ((module.PAYS, (3, 5)), (module.PAID_BY, (5, 3))):
        data[key].edge_index = torch.cat((data[key].edge_index, torch.tensor([ends]).T), dim=1)
        data[key].edge_attr = torch.cat((data[key].edge_attr, torch.tensor([[0.2, 1.0]])))
    with torch.no_grad():
        nightly = model.eval()(data.x_dict, data.edge_index_dict, data.edge_attr_dict)["card"]
    assert torch.allclose(torch.tensor(served["outputs"]), nightly, atol=1e-4)


def _module_of(file: Path):
    return next(each for each in sys.modules.values() if getattr(each, "__file__", None) == str(file))


@pytest.mark.slow
@pytest.mark.model
def test_an_encoder():
    pytest.importorskip("torch")
    app = load_app_file(str(EXAMPLES / "encoder.py"))
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        asked = {"model": "mini", "query": "what barks?", "documents": ["a cat", "a dog barks", "the sky"]}
        assert client.post("/v1/rerank", json=asked).json()["results"][0]["index"] == 1
