from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow
import pytest
import torch

from foreserve.app import App
from foreserve.gateway.graph_bodies import ARROW, NDJSON, columns, lines
from foreserve.services.graph import Graph
from tests.gateway.house import House, serving
from tests.services import graph_app
from tests.services.graph_app import Attending, Net, words

UPDATES = "/v1/graphs/net/updates"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with serving(graph_app.app) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.url, timeout=30) as client:
        yield client


def outputs(client: httpx.Client, nodes: list[int], name: str = "net", **more: Any) -> Any:
    reply = client.post(f"/v1/graphs/{name}/query", json={"nodes": nodes, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def version(client: httpx.Client, name: str = "net") -> int:
    return int(client.get(f"/v1/graphs/{name}/status").json()["version"])


@pytest.mark.parametrize(("name", "model"), [("net", Net), ("attending", Attending)])
def test_answers_are_the_models_own_before_and_after_an_update(client: httpx.Client, name: str, model: Any) -> None:
    data = graph_app.graph()
    x, index = data.x, data.edge_index
    before = outputs(client, list(range(40)), name)
    with torch.no_grad():
        assert np.allclose(before["outputs"], model()(x, index), atol=1e-5)
    assert before["staleness_ms"] == 0.0
    changes = [
        {"op": "insert_node", "id": 40, "features": [1.0, 2.0, 3.0, 4.0]},
        {"op": "insert_edge", "source": 40, "target": 7},
        {"op": "set_features", "id": 3, "features": [0.0, 0.0, 1.0, 0.0]},
    ]
    made = client.post(f"/v1/graphs/{name}/updates", json={"changes": changes}).json()
    assert (made["version"], made["changes"], made["again"]) == (before["version"] + 1, 3, False)
    x = torch.cat((x, torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
    x[3] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    index = torch.cat((index, torch.tensor([[40], [7]])), dim=1)
    after = outputs(client, [7, 40, 3], name)
    assert after["version"] == made["version"]
    with torch.no_grad():
        assert np.allclose(after["outputs"], model()(x, index)[[7, 40, 3]], atol=1e-5)
    gone = [{"op": "delete_node", "id": 40}, {"op": "set_features", "id": 3, "features": data.x[3].tolist()}]
    client.post(f"/v1/graphs/{name}/updates", json={"changes": gone})
    with torch.no_grad():
        assert np.allclose(
            outputs(client, list(range(40)), name)["outputs"], model()(data.x, data.edge_index), atol=1e-5
        )


def test_the_three_forms_of_an_update_do_the_same(client: httpx.Client) -> None:
    edges = [(a, b) for a in (30, 31) for b in (35, 36, 37)]
    answers = []
    for form in ("json", "lines", "arrow"):
        changes = [{"op": "delete_edge", "source": a, "target": b} for a, b in edges]
        client.post(UPDATES, json={"changes": changes})
        changes = [{"op": "insert_edge", "source": a, "target": b} for a, b in edges]
        if form == "json":
            made = client.post(UPDATES, json={"changes": changes})
        elif form == "lines":
            body = b"\n".join(httpx.Request("POST", "http://a", json=each).content for each in changes)
            made = client.post(UPDATES, content=body, headers={"content-type": NDJSON})
        else:
            table = pyarrow.table({"source": [a for a, _ in edges], "target": [b for _, b in edges]})
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            body = sink.getvalue().to_pybytes()
            made = client.post(f"{UPDATES}?op=insert_edge", content=body, headers={"content-type": ARROW})
        assert made.json()["changes"] == 6, made.text
        answers.append(outputs(client, [35, 36, 37])["outputs"])
    assert np.allclose(answers[0], answers[1], atol=1e-5)
    assert np.allclose(answers[0], answers[2], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words_"),
    [
        (
            {"op": "insert_edge", "source": 1, "target": 99},
            "changes[1] (insert_edges node:to:node): there is no node 99",
        ),
        ({"op": "insert_node", "id": 50, "features": [1.0]}, "`features` has width 1; node has 4"),
        ({"op": "insert_node", "id": -1, "features": [1.0] * 4}, "id -1 is out of bounds"),
        ({"op": "insert_node", "id": 2**70, "features": [1.0] * 4}, "out of bounds"),
        ({"op": "insert_edge", "source": 1, "target": 2, "type": "a:b:c"}, "there is no edge type 'a:b:c'"),
        ({"op": "insert_edge", "source": 1}, "target"),
        ({"op": "paint", "id": 1}, "paint"),
        ({"op": "insert_edge", "source": 1, "target": 2, "weight": 2.0}, "has source, target, weight"),
    ],
)
def test_what_does_not_fit_is_refused_whole_with_its_place(client: httpx.Client, change: Any, words_: str) -> None:
    before = version(client)
    good = {"op": "insert_edge", "source": 0, "target": 1}
    refused = client.post(UPDATES, json={"changes": [good, change]})
    assert refused.status_code == 400
    assert words_ in refused.json()["error"]["message"]
    assert version(client) == before


def test_what_is_no_number_is_refused(client: httpx.Client) -> None:
    body = b'{"changes":[{"op":"set_features","id":1,"features":[1.0,2.0,3.0,NaN]}]}'
    assert client.post(UPDATES, content=body, headers={"content-type": "application/json"}).status_code == 400
    refused = client.post(UPDATES, content=b"{}\n", headers={"content-type": NDJSON})
    assert (refused.status_code, "line 1" in refused.json()["error"]["message"]) == (400, True)
    refused = client.post(UPDATES, content=b"nothing", headers={"content-type": ARROW})
    assert "named in the address: insert_node" in refused.json()["error"]["message"]
    refused = client.post(f"{UPDATES}?op=insert_edge", content=b"nothing", headers={"content-type": ARROW})
    assert "no Arrow stream" in refused.json()["error"]["message"]


def test_an_unknown_node_is_refused_and_others_are_answered(client: httpx.Client) -> None:
    refused = client.post("/v1/graphs/net/query", json={"nodes": [1, 99]})
    assert refused.status_code == 400
    assert "nodes[1]: there is no node 99" in refused.json()["error"]["message"]
    refused = client.post("/v1/graphs/net/query", json={"nodes": [1], "type": "user"})
    assert "returns nothing for nodes of type 'user'; valid: node" in refused.json()["error"]["message"]
    assert client.post("/v1/graphs/net/query", json={"nodes": [1], "max_staleness_ms": -1}).status_code == 400
    assert client.post("/v1/graphs/none/query", json={"nodes": [1]}).status_code == 404
    assert outputs(client, [])["outputs"] == []


def test_a_key_applies_once(client: httpx.Client) -> None:
    body = {"changes": [{"op": "insert_edge", "source": 2, "target": 9}], "key": "one"}
    first = client.post(UPDATES, json=body).json()
    again = client.post(UPDATES, json={"changes": body["changes"]}, headers={"idempotency-key": "one"}).json()
    assert (first["again"], again["again"], again["version"]) == (False, True, first["version"])
    assert (first["changes"], again["changes"]) == (1, 0)
    differs = client.post(UPDATES, json=body, headers={"idempotency-key": "two"})
    assert differs.status_code == 400


def test_a_mistyped_kind_of_change_is_told_with_its_place_and_the_kinds(client: httpx.Client) -> None:
    fine, wrong = {"op": "insert_edge", "source": 2, "target": 9}, {"op": "insert_edg", "source": 2, "target": 9}
    refused = client.post(UPDATES, json={"changes": [fine, wrong]})
    words = "invalid value 'insert_edg'; valid: insert_node, set_features, delete_node, insert_edge, delete_edge"
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, f"`changes[1].op`: {words}")
    lines = "\n".join(json.dumps(each) for each in (fine, wrong))
    refused = client.post(UPDATES, content=lines, headers={"content-type": "application/x-ndjson"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, f"line 2: `op`: {words}")


def test_status_and_refresh(client: httpx.Client) -> None:
    said = client.get("/v1/graphs/net/status").json()
    assert said["layers"] == 2
    assert said["level"] == 1
    assert said["nodes"]["node"] >= 40
    assert said["table_bytes"] > 0
    assert client.post("/v1/graphs/net/refresh").json()["drift"] < 1e-5
    names = {each["name"]: each["ready"] for each in client.get("/v1/graphs").json()["graphs"]}
    assert names == {"net": True, "attending": True}


async def test_many_at_once_are_joined(house: House) -> None:
    async with httpx.AsyncClient(base_url=house.url, timeout=30) as client:
        before = (await client.get("/v1/graphs/net/status")).json()
        changes = [[{"op": "insert_edge", "source": n, "target": 39 - n}] for n in range(30)]
        made = await asyncio.gather(*(client.post(UPDATES, json={"changes": each}) for each in changes))
        asked = [client.post("/v1/graphs/net/query", json={"nodes": [n], "max_staleness_ms": 0}) for n in range(30)]
        answers = await asyncio.gather(*asked)
        after = (await client.get("/v1/graphs/net/status")).json()
    assert all(each.status_code == 200 for each in (*made, *answers))
    assert max(each.json()["version"] for each in made) == after["version"] <= before["version"] + 30
    assert {each.json()["staleness_ms"] for each in answers} == {0.0}
    assert {each.json()["version"] for each in answers} == {after["version"]}


def test_a_restart_goes_on_from_the_log(tmp_path: Path) -> None:
    changes = [{"op": "insert_edge", "source": 5, "target": 6}]
    answers = []
    for n in range(2):
        app = App(net=Graph(Net, **words(str(tmp_path / "log"))))
        with serving(app) as house, httpx.Client(base_url=house.url, timeout=30) as client:
            made = client.post(UPDATES, json={"changes": changes, "key": "a"}).json()
            assert made["again"] == (n == 1)
            answers.append(outputs(client, [5, 6, 7]))
    assert np.allclose(answers[0]["outputs"], answers[1]["outputs"], atol=1e-6)
    assert answers[0]["version"] == answers[1]["version"]


def test_bodies_of_one_form_become_one_group() -> None:
    body = b"""{"op":"insert_edge","source":1,"target":2}
    {"op":"delete_edge","source":1,"target":2}

    {"op":"insert_edge","source":3,"target":4}"""
    made = columns(lines(body))
    assert [(group.kind, group.order.tolist()) for group in made.groups] == [
        ("insert_edges", [0, 2]),
        ("delete_edges", [1]),
    ]
    assert len(made) == 3
