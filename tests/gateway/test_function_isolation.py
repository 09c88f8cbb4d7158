"""Crashes, leaks, endless loops and replies that are too large, in real worker processes: each costs its own caller."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from foreserve import App
from foreserve.runtime.wire import MAX_MESSAGE_BYTES
from tests.gateway import isolated
from tests.gateway.house import House, serving


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    names = ("once", "risky", "late", "large", "leaky", "batched", "rare")
    app = App(**{name: getattr(isolated, name) for name in names}, state={"history": False})
    with serving(app) as house:
        yield house


@pytest.fixture
def client(house: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.url, timeout=60) as client:
        yield client


def call(client: httpx.Client, name: str, **args: Any) -> httpx.Response:
    return client.post(f"/v1/functions/{name}", json=args)


def together(client: httpx.Client, *calls: Callable[[], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(each) for each in calls]]


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def state(client: httpx.Client, name: str) -> list[str]:
    services = client.get("/v1/foreserve/status").json()["services"]
    return [replica["state"] for each in services if each["name"] == name for replica in each["replicas"]]


def until(found: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["segv", "exit"])
def test_a_crash_is_told_to_its_caller_and_touches_no_other_function(client: httpx.Client, how: str):
    before = call(client, "once").json()["result"]
    died, beside = together(client, lambda: call(client, "risky", how=how), lambda: call(client, "once", wait_s=0.2))
    assert code(died) == (503, "replica_lost")
    assert "it may have had effects" in died.json()["error"]["message"]
    assert beside.json()["result"] == before
    assert call(client, "risky").status_code == 200, "its next caller has a new worker"


def test_who_ran_beside_a_crash_runs_again_where_that_does_no_harm(client: httpx.Client, tmp_path: Path):
    before = call(client, "once").json()["result"]
    died, beside = together(
        client,
        lambda: call(client, "once", marker=str(tmp_path / "x"), how="exit"),
        lambda: call(client, "once", wait_s=1.0),
    )
    assert (died.status_code, beside.status_code) == (200, 200)
    assert before not in (died.json()["result"], beside.json()["result"])


def test_a_call_of_a_batch_that_crashes_takes_none_of_the_others_with_it(client: httpx.Client):
    replies = together(client, *(lambda how=how: call(client, "batched", how=how) for how in ("", "exit", "", "")))  # type: ignore[misc]
    assert [reply.status_code for reply in replies] == [200, 503, 200, 200]
    assert "under its attempt 2 too" in replies[1].json()["error"]["message"]


def test_an_endless_loop_ends_in_time_and_its_worker_lives(client: httpx.Client):
    before = call(client, "late").json()["result"]
    stuck, beside = together(client, lambda: call(client, "late", how="spin"), lambda: call(client, "late"))
    assert code(stuck) == (500, "engine_error")
    assert stuck.json()["error"]["message"] == "the call ran longer than its `timeout_s`, 0.5 s"
    assert beside.json()["result"] == call(client, "late").json()["result"] == before


def test_a_worker_is_replaced_when_none_of_its_threads_can_be_stopped(client: httpx.Client):
    before = call(client, "late").json()["result"]
    stuck = together(client, *[lambda: call(client, "late", how="sleep")] * 2)
    assert [code(reply) for reply in stuck] == [(500, "engine_error")] * 2
    until(lambda: call(client, "late").json().get("result") not in (None, before))


def test_memory_that_is_not_there_and_a_reply_that_is_too_large(client: httpx.Client):
    full = call(client, "large", size=-1)
    assert (code(full), full.json()["error"]["message"]) == (
        (500, "engine_error"),
        "the call ran out of memory (MemoryError)",
    )
    large = call(client, "large", size=MAX_MESSAGE_BYTES + 1)
    assert code(large) == (500, "engine_error")
    assert f"at most {MAX_MESSAGE_BYTES} are carried" in large.json()["error"]["message"]
    assert call(client, "large", size=1).status_code == 200


def test_more_memory_than_is_allowed_costs_the_call_that_wants_it(client: httpx.Client):
    over, under = together(client, lambda: call(client, "leaky", mib=300), lambda: call(client, "leaky"))
    assert code(over) == (500, "engine_error")
    assert "ran out of memory" in over.json()["error"]["message"]
    assert under.json() == {"result": 0}
    assert call(client, "leaky", mib=16).json() == {"result": 16}


def test_without_a_worker_the_first_call_waits_for_one(client: httpx.Client):
    until(lambda: state(client, "rare") == [])
    assert call(client, "rare").status_code == 200


def test_a_call_that_comes_while_the_last_worker_leaves_is_served(client: httpx.Client):
    for _ in range(3):
        assert call(client, "rare").status_code == 200
        until(lambda: state(client, "rare") != ["ready"])
        replies = together(client, *[lambda: call(client, "rare")] * 4)
        assert [reply.status_code for reply in replies] == [200] * 4
