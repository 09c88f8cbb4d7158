from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from foreserve.app import App
from foreserve.core import Price, Request
from foreserve.errors import ConfigError
from foreserve.graphs.asked import Ask, Query, Update
from foreserve.services.graph import Graph
from foreserve.tensors import tensor_of
from tests.gateway.house import serving
from tests.services.graph_app import Net, words


def _request(payload: Any) -> Request:
    return Request(id="a", service="net", payload=payload, arrival=0.0)


def test_updates_go_to_the_one_that_writes_and_are_never_run_again() -> None:
    kind = Graph(Net, **words("log", replicas=3))
    query = Query(tensor_of(np.array([1])))
    assert kind.price(_request(query)) == Price(cost={"slots": 1.0})
    update = kind.price(_request(Update(b"", 0)))
    assert update == Price(cost={"slots": 1.0, "writes": 1.0}, idempotent=False)
    assert kind.price(_request(Ask())).idempotent is True
    assert [spec.options["follow"] for spec in kind.engines()] == [False, True, True]
    ranged = Graph(Net, **words("log", replicas=(1, 3)))
    assert [spec.options["follow"] for spec in ranged.engines()] == [False, True, True]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"replicas": 2, "log": None}, "`replicas` is 2; those that read follow the `log`"),
        ({"replicas": (0, 3), "log": "log"}, "a graph has at least the one that writes"),
        ({"replicas": (1, 3), "log": None}, "`replicas` is (1, 3); those that read follow the `log`"),
        ({"hot_bytes": -1}, "`hot_bytes`"),
        ({"graph": None}, "`graph` names no data"),
        ({"edges": {"buys": {}}}, "'buys' is no edge type; valid: source:relation:target"),
        ({"mode": "quick"}, "mode"),
        ({"level": 1, "query_edges": 10}, "set one of them"),
        ({"batch_changes": 0}, "`batch_changes`"),
    ],
)
def test_settings_that_do_not_fit_are_told(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        Graph(Net, **{**words(), **given})
    assert said in str(told.value)


def test_what_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights: .*none.safetensors is not there"):
        Graph(Net, **words(weights="none.safetensors")).check()
    with pytest.raises(ConfigError, match="has no 'Nte'"):
        Graph(f"{Path(__file__).parent}/graph_app.py:Nte", **words()).check()
    with pytest.raises(ConfigError, match="is no class"):
        Graph(Net(), **words())  # type: ignore[arg-type]


def _asked(client: httpx.Client, **more: Any) -> Any:
    reply = client.post("/v1/graphs/net/query", json={"nodes": [7], **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_of_a_range_the_one_that_writes_is_there_first_and_stays(tmp_path: Path) -> None:
    app = App(net=Graph(Net, **words(str(tmp_path / "log"), replicas=(1, 3))))
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        update = {"changes": [{"op": "insert_edge", "source": 5, "target": 7}]}
        version = client.post("/v1/graphs/net/updates", json=update).json()["version"]
        assert _asked(client)["version"] == version
        for wanted in (3, 1):
            house.ask(lambda running, wanted=wanted: running.services["net"].replicas.scale(wanted))
            assert min(each["name"] for each in _replicas(house)) == "net/0.1"
        assert client.post("/v1/graphs/net/updates", json=update).json()["version"] == version + 1


def test_a_writer_that_is_killed_comes_back_while_a_read_replica_answers(tmp_path: Path) -> None:
    app = App(net=Graph(Net, **words(str(tmp_path / "log"), launcher="local", replicas=2)))
    with serving(app) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        deadline = time.monotonic() + 90
        while sum(each["state"] == "ready" for each in _replicas(house)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        update = {"changes": [{"op": "insert_edge", "source": 5, "target": 7}], "key": "a"}
        made = client.post("/v1/graphs/net/updates", json=update).json()
        for _ in range(20):  # whoever answers, it has seen what came more than a moment ago
            time.sleep(0.05)
            assert _asked(client, max_staleness_ms=100)["staleness_ms"] <= 100
        assert _asked(client)["version"] == made["version"]
        before = _asked(client)["outputs"]
        writer = min(_replicas(house), key=lambda each: each["name"])
        os.kill(writer["pid"], signal.SIGKILL)
        assert np.allclose(_asked(client)["outputs"], before, atol=1e-6)
        again = client.post("/v1/graphs/net/updates", json=update)
        while again.status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.2)  # lost with the writer, or none to take it
            again = client.post("/v1/graphs/net/updates", json=update)
        assert again.json()["version"] == made["version"]
        assert again.json()["again"] is True


def _replicas(house: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.ask(
        lambda running: [
            {"name": each.name, "state": each.state, "pid": each.pid}
            for each in running.services["net"].status().replicas
        ]
    )
    return found
