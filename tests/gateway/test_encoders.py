"""Embeddings, ranking and tasks over HTTP, by small encoders in the test's own process."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from foreserve.app import App
from foreserve.services.encoder import Encoder
from tests.elastic import folders
from tests.gateway.house import serving


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    base = tmp_path_factory.mktemp("encoders")
    made = {name: base / name for name in ("words", "pairs", "images", "tasks")}
    for name in ("words", "pairs", "images"):
        made[name].mkdir()
    folders.sentences(made["words"], prompts={"query": "find "})
    folders.cross(made["pairs"])
    folders.vision(made["images"])
    folders.task(made["tasks"] / "mood", ["bad", "good"], {"merge:2": 0.7, "plain": 0.8, "prompts:2": 0.9}, (2,))
    words: dict[str, Any] = {"launcher": "inline", "measure_s": 0.01, "max_running": 4, "threads": 1}
    app = App(
        words=Encoder(str(made["words"]), elastic=["merge:2"], **words),
        moods=Encoder(str(made["words"]), tasks=str(made["tasks"]), **words),
        pairs=Encoder(str(made["pairs"]), **words),
        images=Encoder(str(made["images"]), **words),
        state={"history": False},
    )
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=30) as client:
        yield client


def embed(client: httpx.Client, given: Any, **words: Any) -> dict[str, Any]:
    reply = client.post("/v1/embeddings", json={"model": "words", "input": given, **words})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def vectors(reply: dict[str, Any]) -> np.ndarray:
    assert [each["index"] for each in reply["data"]] == [*range(len(reply["data"]))]
    return np.array([each["embedding"] for each in reply["data"]])


def refused(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = client.post(path, json=body)
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    return error


def test_embeddings_are_exact_unless_somebody_asks_otherwise(client: httpx.Client) -> None:
    reply = embed(client, ["a b c", "a b c d e f g h"])
    assert reply["foreserve"] == {"settings": {"plain": 2}, "expected_accuracy": 1.0}
    assert reply["usage"] == {"prompt_tokens": 15, "total_tokens": 15}
    np.testing.assert_allclose(np.linalg.norm(vectors(reply), axis=1), 1, atol=1e-5)


def test_text_and_its_token_ids_are_the_same(client: httpx.Client) -> None:
    text = vectors(embed(client, "a b"))
    for given in (["a b"], [4, 5], [[4, 5]], [[2, 4, 5, 3]]):
        np.testing.assert_allclose(vectors(embed(client, given)), text, atol=1e-5)


def test_base64_and_dimensions(client: httpx.Client) -> None:
    plain = vectors(embed(client, "a b"))
    reply = embed(client, "a b", encoding_format="base64", dimensions=4)
    found = np.frombuffer(base64.b64decode(reply["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(found, plain[0][:4] / np.linalg.norm(plain[0][:4]), atol=1e-5)


def test_openais_own_client_reads_them(client: httpx.Client) -> None:
    import openai

    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none") as theirs:
        found = theirs.embeddings.create(model="words", input=["a b", "c"])
        assert [model.id for model in theirs.models.list()] == ["words", "moods", "pairs", "images"]
    np.testing.assert_allclose(found.data[0].embedding, vectors(embed(client, "a b"))[0], atol=1e-5)


def test_a_setting_can_be_asked_for_and_the_reply_tells_it(client: httpx.Client) -> None:
    reply = embed(client, "a b c d e f g", foreserve={"setting": "merge:2"})
    assert reply["foreserve"]["settings"] == {"merge:2": 1}
    assert 0 < reply["foreserve"]["expected_accuracy"] < 1
    assert not np.allclose(vectors(reply), vectors(embed(client, "a b c d e f g")), atol=1e-3)


def test_elastic_takes_the_most_accurate_that_there_is_time_for(client: httpx.Client) -> None:
    reply = embed(client, "a b c d", foreserve={"elastic": True, "slo_ms": 60_000})
    assert reply["foreserve"] == {"settings": {"plain": 1}, "expected_accuracy": 1.0}


def test_prompts_of_the_model_go_before_a_text(client: httpx.Client) -> None:
    asked = vectors(embed(client, "a b", foreserve={"prompt": "query"}))
    np.testing.assert_allclose(asked, vectors(embed(client, "find a b")), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a", "dimensions": 17}, "dimensions"),
        ({"input": ["a", 4]}, "input"),
        ({"input": [[4, 99]]}, "input.0"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "foreserve": {"prompt": "answer"}}, "foreserve.prompt"),
        ({"input": "a", "foreserve": {"setting": "merge:9"}}, "foreserve.setting"),
        ({"input": "a", "model": "pairs"}, "model"),
        ({"input": "a", "model": "images"}, "model"),
    ],
)
def test_what_is_wrong_with_embeddings_is_told(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert (refused(client, "/v1/embeddings", {"model": "words", **body}))["param"] == param


@pytest.mark.parametrize("model", ["words", "pairs"])
def test_ranking(client: httpx.Client, model: str) -> None:
    documents = ["b c", {"text": "a b"}, "x y z"]
    body = {"model": model, "query": "a b", "documents": documents, "top_n": 2, "return_documents": True}
    reply = client.post("/v1/rerank", json=body)
    assert reply.status_code == 200, reply.text
    results = reply.json()["results"]
    assert len(results) == 2
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]
    for each in results:
        given = documents[each["index"]]
        assert each["document"]["text"] == (given if isinstance(given, str) else given["text"])
    if model == "words":
        assert results[0]["index"] == 1
        assert results[0]["relevance_score"] == pytest.approx(1, abs=1e-4)
    wrong = refused(client, "/v1/rerank", {"model": "images", "query": "a", "documents": ["b"]})
    assert wrong["param"] == "model"


def asked(name: str, value: str, **parameters: Any) -> dict[str, Any]:
    given = {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}
    return {"inputs": [given], "parameters": parameters}


def test_a_task_answers_with_a_label_and_how_accurate_that_is(client: httpx.Client) -> None:
    reply = (client.post("/v2/models/moods/infer", json=asked("text", "a b c"))).json()
    outputs = {each["name"]: each["data"] for each in reply["outputs"]}
    assert sum(outputs["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert outputs["label"] == [["bad", "good"][int(np.argmax(outputs["probabilities"]))]]
    assert reply["parameters"] == {"setting": "prompts:2", "expected_accuracy": 0.9}
    fast = asked("text", "a b c", setting="merge:2")
    reply = (client.post("/v2/models/moods/infer", json=fast)).json()
    assert reply["parameters"] == {"setting": "merge:2", "expected_accuracy": 0.7}


def test_accuracy_can_be_bounded(client: httpx.Client) -> None:
    good = asked("text", "a b c", min_accuracy=0.85)
    assert (client.post("/v2/models/moods/infer", json=good)).json()["parameters"]["setting"] == "prompts:2"
    reply = client.post("/v2/models/moods/infer", json=asked("text", "a b c", min_accuracy=0.95))
    assert reply.status_code == 400
    assert "prompts:2, is expected to reach 0.900" in reply.json()["error"]


def test_an_image_is_sent_as_its_file_or_as_pixels(client: httpx.Client) -> None:
    array = np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [9, 14, 3], "data": array.ravel().tolist()}
    one = (client.post("/v2/models/images/infer", json={"inputs": [pixels]})).json()
    head = (
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], '
        b'"parameters": {"binary_data_size": %d}}]}' % (len(out.getvalue()) + 4)
    )
    data = len(out.getvalue()).to_bytes(4, "little") + out.getvalue()
    headers = {"inference-header-content-length": str(len(head))}
    other = (client.post("/v2/models/images/infer", content=head + data, headers=headers)).json()
    np.testing.assert_allclose(one["outputs"][0]["data"], other["outputs"][0]["data"], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "body", "told"),
    [
        ("images", asked("image", "no image"), "cannot be read"),
        ("images", asked("text", "a"), "no input is called 'text'"),
        ("words", {"inputs": []}, "`text` is missing"),
        ("moods", asked("text", "a", elastic=3), "parameters"),
        (
            "moods",
            {"inputs": [*asked("text", "a")["inputs"], *asked("task", "mod")["inputs"]]},
            "did you mean 'mood'",
        ),
    ],
)
def test_what_is_wrong_with_a_task_is_told(client: httpx.Client, model: str, body: dict[str, Any], told: str) -> None:
    reply = client.post(f"/v2/models/{model}/infer", json=body)
    assert reply.status_code == 400, reply.text
    assert told in reply.json()["error"]
