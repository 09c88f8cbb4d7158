"""The Open Inference Protocol by hand-made bodies: JSON and raw tensors, and every way in which they can disagree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from foreserve import App, function
from foreserve.tensors import SIZES, packed
from tests.gateway.house import House, serving


@function(launcher="inline")
def add(a: Any, b: Any = 1) -> Any:
    return a + b


@function(launcher="inline")
def both(x: Any) -> dict[str, Any]:
    assert not x.flags.writeable
    return {"same": x, "mean": x.mean()}


@function(launcher="inline")
def words(text: list[str]) -> list[str]:
    return [each.upper() for each in text]


@function(launcher="inline")
def scaled(n: int, by: float) -> float:
    return n * by


@function(launcher="inline", batch=4)
def batched(x: list[Any]) -> list[Any]:
    return [each * 2 for each in x]


@function(launcher="inline")
def raw(x: Any) -> bytes:
    return b"\xff"


@function(launcher="inline")
def thing() -> object:
    return {"a": object()}


@function(launcher="inline")
def yields(x: Any) -> Iterator[Any]:
    yield x


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    app = App(
        add=add, both=both, words=words, scaled=scaled, batched=batched, raw=raw, thing=thing, yields=yields,
        state={"history": False},
    )  # fmt: skip
    with serving(app) as house:
        yield house


def tensor(name: str, value: Any, datatype: str, **more: Any) -> dict[str, Any]:
    made = np.asarray(value)
    return {"name": name, "datatype": datatype, "shape": list(made.shape), "data": made.ravel().tolist(), **more}


def infer(client: httpx.Client, name: str, inputs: list[dict[str, Any]], **body: Any) -> httpx.Response:
    return client.post(f"/v2/models/{name}/infer", json={"inputs": inputs, **body})


def binary(
    client: httpx.Client, name: str, body: dict[str, Any], data: bytes, size: int | None = None
) -> httpx.Response:
    head = json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) if size is None else size)}
    return client.post(f"/v2/models/{name}/infer", content=head + data, headers=headers)


def test_the_server_and_its_models(client: httpx.Client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/scaled/ready").json() == {"name": "scaled", "ready": True}
    told = client.get("/v2/models/scaled").json()
    assert (told["name"], told["platform"], told["outputs"]) == ("scaled", "foreserve_function", [])
    assert told["inputs"] == [
        {"name": "n", "datatype": "INT64", "shape": [-1]},
        {"name": "by", "datatype": "FP64", "shape": [-1]},
    ]
    for path in ("/v2/models/nobody", "/v2/models/nobody/ready"):
        reply = client.get(path)
        assert reply.status_code == 404
        assert "There are: add, both" in reply.json()["error"]


def test_json_in_json_out(client: httpx.Client):
    reply = infer(client, "add", [tensor("a", [[1, 2], [3, 4]], "INT32")], id="mine")
    assert reply.json() == {
        "model_name": "add",
        "id": "mine",
        "outputs": [{"name": "output", "datatype": "INT32", "shape": [2, 2], "data": [2, 3, 4, 5]}],
    }
    nested = {"name": "a", "datatype": "FP32", "shape": [2, 1], "data": [[0.5], [1.5]]}
    assert infer(client, "add", [nested]).json()["outputs"][0]["data"] == [1.5, 2.5]


def test_named_outputs_and_those_that_are_asked_for(client: httpx.Client):
    given = [tensor("x", [1.0, 3.0], "FP64")]
    assert [each["name"] for each in infer(client, "both", given).json()["outputs"]] == ["same", "mean"]
    reply = infer(client, "both", given, outputs=[{"name": "mean"}])
    assert reply.json()["outputs"] == [{"name": "mean", "datatype": "FP64", "shape": [1], "data": [2.0]}]
    reply = infer(client, "both", given, outputs=[{"name": "mode"}])
    assert (reply.status_code, "there are: same, mean" in reply.json()["error"]) == (400, True)


@pytest.mark.parametrize("datatype", [*SIZES, "BYTES"])
def test_every_datatype_as_json_and_as_raw_data(client: httpx.Client, datatype: str):
    values: list[Any] = (
        [True, False, True] if datatype == "BOOL" else ["a", "é", ""] if datatype == "BYTES" else [1, 2, 3]
    )
    reply = infer(client, "words" if datatype == "BYTES" else "both", [named(datatype, values)])
    found = reply.json()["outputs"][0]
    assert found["data"] == (["A", "É", ""] if datatype == "BYTES" else values)
    assert found["datatype"] == ("FP32" if datatype == "BF16" else datatype)
    data = packed([each.encode() for each in values]) if datatype == "BYTES" else raw_of(datatype, values)
    body = {
        "inputs": [{**named(datatype, values), "parameters": {"binary_data_size": len(data)}}],
        "parameters": {"binary_data_output": True},
    }
    del body["inputs"][0]["data"]  # type: ignore[index]
    reply = binary(client, "words" if datatype == "BYTES" else "both", body, data)
    at = int(reply.headers["inference-header-content-length"])
    outputs = json.loads(reply.content[:at])["outputs"]
    size = outputs[0]["parameters"]["binary_data_size"]
    if datatype == "BYTES":
        assert reply.content[at:] == packed([b"A", "É".encode(), b""])
    elif datatype != "BF16":
        assert reply.content[at : at + size] == data


def named(datatype: str, values: list[Any]) -> dict[str, Any]:
    name = "text" if datatype == "BYTES" else "x"
    return {"name": name, "datatype": datatype, "shape": [len(values)], "data": values}


def raw_of(datatype: str, values: list[Any]) -> bytes:
    kinds = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
    if datatype == "BF16":
        return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    kind = kinds.get(datatype, f"<{'u' if datatype[0] == 'U' else 'i'}{SIZES[datatype]}")
    return np.array(values, kind).tobytes()


def test_raw_and_json_may_be_mixed(client: httpx.Client):
    one = {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    body = {
        "inputs": [one, tensor("b", [10.0, 20.0], "FP32")],
        "outputs": [{"name": "output", "parameters": {"binary_data": True}}],
    }
    reply = binary(client, "add", body, np.array([1, 2], "<f4").tobytes())
    at = int(reply.headers["inference-header-content-length"])
    assert np.frombuffer(reply.content[at:], "<f4").tolist() == [11.0, 22.0]
    assert reply.headers["content-type"] == "application/octet-stream"


def test_annotations_say_what_a_tensor_becomes(client: httpx.Client):
    given = [tensor("n", [3], "INT8"), tensor("by", [0.5], "FP32")]
    assert infer(client, "scaled", given).json()["outputs"][0]["data"] == [1.5]
    wrong = infer(client, "scaled", [tensor("n", [3, 4], "INT8"), tensor("by", [0.5], "FP32")])
    assert (wrong.status_code, wrong.json()["error"]) == (400, "`n`: expected int, got INT8 of shape [2]")


def test_batches_of_calls(client: httpx.Client):
    assert infer(client, "batched", [tensor("x", [[1.0, 2.0]], "FP32")]).json()["outputs"][0] == {
        "name": "output", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "a", "datatype": "FP32", "shape": [2], "data": [1.0]}, "'a': 1 elements of data; the shape "),
        ({"name": "a", "datatype": "FP33", "shape": [1], "data": [1.0]}, "'a': the datatype 'FP33' is none"),
        ({"name": "a", "datatype": "INT8", "shape": [1], "data": [1.5]}, "INT8 data: expected int, got float"),
        ({"name": "a", "datatype": "INT8", "shape": [1], "data": [300]}, "a number is out of the range of INT8"),
        ({"name": "a", "datatype": "UINT64", "shape": [1], "data": [-1]}, "out of the range of UINT64"),
        ({"name": "a", "datatype": "BOOL", "shape": [1], "data": [1]}, "BOOL data: expected bool"),
        ({"name": "a", "datatype": "BYTES", "shape": [1], "data": [1]}, "BYTES data: expected str"),
        ({"name": "a", "datatype": "FP32", "shape": [-1], "data": [1.0]}, "negative size"),
        ({"name": "a", "datatype": "FP32", "shape": [1]}, "neither `data` nor `binary_data_size`"),
        ({"name": "a", "datatype": "FP32", "shape": "x", "data": []}, "expected array"),
        ({"name": "a", "datatype": "FP32", "data": []}, "shape"),
        ({"name": "z", "datatype": "FP32", "shape": [1], "data": [1.0]}, "wrong arguments"),
    ],
)  # fmt: skip
def test_a_wrong_tensor_is_a_400_that_names_it(client: httpx.Client, given: dict[str, Any], said: str):
    reply = infer(client, "add", [given])
    assert reply.status_code == 400
    assert said in reply.json()["error"]


@pytest.mark.parametrize(
    ("parameters", "data", "size", "said"),
    [
        ({"binary_data_size": 8}, b"1234", None, "8 bytes of raw data are announced, and 4 are left"),
        ({"binary_data_size": 4}, b"1234", None, "input 'a': 4 bytes of data; FP32 of shape [2] has 2 elements of 4"),
        ({"binary_data_size": 8}, b"123456789", None, "1 bytes of raw data belong to no input"),
        ({"binary_data_size": -8}, b"", None, "a number of bytes"),
        ({"binary_data_size": True}, b"", None, "a number of bytes"),
        ({}, b"", 99999, "`Inference-Header-Content-Length` is '99999'"),
    ],
)
def test_raw_data_that_does_not_agree(client: httpx.Client, parameters: Any, data: bytes, size: int | None, said: str):
    body = {"inputs": [{"name": "a", "datatype": "FP32", "shape": [2], "parameters": parameters}]}
    reply = binary(client, "add", body, data, size)
    assert reply.status_code == 400
    assert said in reply.json()["error"]


def test_two_inputs_of_one_name(client: httpx.Client):
    reply = infer(client, "add", [tensor("a", [1], "INT8")] * 2)
    assert "two of this name" in reply.json()["error"]


def test_results_that_the_protocol_has_no_way_for(client: httpx.Client):
    reply = infer(client, "raw", [tensor("x", [1], "INT8")])
    assert (reply.status_code, "ask for its `binary_data`" in reply.json()["error"]) == (400, True)
    reply = infer(client, "thing", [])
    assert (reply.status_code, "output 'a'" in reply.json()["error"]) == (500, True)
    reply = infer(client, "yields", [tensor("x", [1], "INT8")])
    assert (reply.status_code, "in parts" in reply.json()["error"]) == (400, True)
    assert infer(client, "nobody", []).status_code == 404
