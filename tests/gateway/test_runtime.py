"""A function with weights goes stage by stage, each as far as its timers let it, and is called back from every one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from foreserve import App
from foreserve.services.function import Function
from tests.devices import use
from tests.gateway.house import serving

CODE = """
import foreserve as fs

class Sum:
    def __init__(self, weights: fs.Weights) -> None:
        self.weights = weights.numpy("w")

    def __call__(self, by: int) -> int:
        return int(self.weights.sum()) * by
"""


DEVICE_CODE = """
import foreserve as fs

class Sum:
    def __init__(self, weights: fs.Weights) -> None:
        self.weights = weights.torch("w")

    def __call__(self, by: int) -> int:
        return int(self.weights.sum()) * by
"""


def app(folder: Path, **runtime: Any) -> App:
    """Of one function, `total`, that answers six times what it is given."""
    (folder / "code.py").write_text(CODE)
    save_file({"w": np.array([1, 2, 3])}, folder / "w.safetensors")
    kind = Function(
        f"{folder / 'code.py'}:Sum",
        weights=str(folder / "w.safetensors"),
        replicas=[0, 1],
        scaling={"idle_s": 0.2, "every_s": 0.1},
        imports=["numpy"],
    )
    return App(total=kind, runtime=runtime, state={"history": False})


def told(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/v1/foreserve/runtime").json()
    return answer


def until(client: httpx.Client, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    end = time.monotonic() + 30
    while not holds(now := told(client)):
        assert time.monotonic() < end, now
        time.sleep(0.05)
    return now


RUNS = [
    ({"host_s": 600, "context_s": 600}, "weights", ["a fork", "mapping the weights"]),
    ({"host_s": 0, "context_s": 600}, "context", ["a fork", "reading the weights"]),
    ({"host_s": 0, "context_s": 0}, "cold", ["an interpreter and its imports", "reading the weights"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "stage", "pays"), RUNS, ids=[run[1] for run in RUNS])
def test_each_stage_frees_what_it_says_and_is_called_back_from(tmp_path, runtime, stage, pays):
    with serving(app(tmp_path, **runtime)) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        assert told(client)["services"][0]["stage"] == "cold", "nothing was ever asked for"
        assert client.post("/v1/functions/total", json={"by": 2}).json()["result"] == 12
        there = until(client, lambda now: now["services"][0]["return_s"] and now["services"][0]["stage"] == stage)
        (service,) = there["services"]
        assert (service["ready"], service["references"], service["pays"]) == (0, 0, pays)
        assert there["workers"] == []
        assert [one["state"] for one in there["weights"]["entries"]] == (["ready"] if stage == "weights" else [])
        assert len(there["contexts"]) == (stage != "cold")
        assert client.post("/v1/functions/total", json={"by": 3}).json()["result"] == 18
        loads = 1 if stage == "weights" else 2
        back = until(client, lambda now: stage in now["services"][0]["return_s"] and now["weights"]["loads"] == loads)
        assert set(back["services"][0]["return_s"]) == {"cold", stage}


def test_who_works_is_told_with_what_it_holds(tmp_path):
    kinds = app(tmp_path)
    kinds.services["total"] = Function(
        f"{tmp_path / 'code.py'}:Sum", weights=str(tmp_path / "w.safetensors"), imports=["numpy"]
    )
    with serving(kinds) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        now = told(client)
        (service,), (worker,) = now["services"], now["workers"]
        assert (service["name"], service["stage"], service["ready"], service["pays"]) == ("total", "running", 1, [])
        assert service["references"] >= 1
        assert os.path.exists(f"/proc/{worker['pid']}")
        assert 0 < worker["memory"]["private"] <= worker["memory"]["pss"]
        totals = now["totals"]
        assert totals["workers_bytes"] == worker["memory"]["pss"]
        parts = [totals[name] for name in ("workers_bytes", "contexts_bytes", "owner_bytes")]
        assert all(parts)
        assert totals["all_bytes"] == sum(parts)
        asked = now["weights"]["hits"] + now["weights"]["misses"]
        assert now["hit_rate"] == now["weights"]["hits"] / asked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["host-copy", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_the_copy_on_a_device_goes_first_then_the_workers_and_the_next_call_has_it_again(tmp_path, monkeypatch, kind):
    pytest.importorskip("torch")
    device = use(kind, tmp_path, monkeypatch)
    kinds = app(tmp_path, rest_s=0.2, device_s=0, host_s=600, context_s=600)
    (tmp_path / "code.py").write_text(DEVICE_CODE)
    words = {"replicas": [0, 1], "imports": ["torch"], "device": device, "idempotent": True}
    kinds.services["total"] = Function(
        f"{tmp_path / 'code.py'}:Sum",
        weights=str(tmp_path / "w.safetensors"),
        scaling={"idle_s": 8, "every_s": 0.1},
        **words,
    )
    with serving(kinds) as house, httpx.Client(base_url=house.url, timeout=60) as client:
        assert client.post("/v1/functions/total", json={"by": 2}).json()["result"] == 12
        there = until(client, lambda now: now["services"][0]["stage"] == "workers")
        (service,), (worker,) = there["services"], there["workers"]
        assert (service["ready"], service["pays"]) == (1, ["copying the weights to their device"])
        assert [(one["device"], one["state"]) for one in there["weights"]["entries"]] == [(None, "ready")]
        assert (there["weights"]["loads"], there["weights"]["uploads"]) == (1, 1)
        answers = [client.post("/v1/functions/total", json={"by": by}).json()["result"] for by in range(4)]
        assert answers == [0, 6, 12, 18]
        back = until(client, lambda now: "workers" in now["services"][0]["return_s"])
        assert back["workers"][0]["pid"] == worker["pid"]  # the same one
        assert (back["weights"]["loads"], back["weights"]["uploads"]) == (1, 2)
        until(client, lambda now: now["services"][0]["stage"] == "workers")
        left = until(client, lambda now: now["services"][0]["stage"] == "weights")
        assert left["workers"] == []
        assert client.post("/v1/functions/total", json={"by": 5}).json()["result"] == 30
