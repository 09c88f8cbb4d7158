from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreserve.simulation.figures import Result
from foreserve.simulation.study import simulate
from foreserve.simulation.timeline import Timeline
from tests.simulation.traces import chat, poisson, profiles


def write(path: Path, most: int = 1000) -> tuple[Result, list[dict[str, Any]]]:
    with Timeline(path, most) as timeline:
        app = chat(replicas=2, queue={"max_waiting": 12})
        trace = poisson(300, 20.0, deadline_s=20.0, tenant='a "quoted" one'[:7])
        result = simulate(app, profiles(), trace, observers=[timeline.ended])
        timeline.courses(result)
    document = msgspec.json.decode(path.read_bytes())
    events: list[dict[str, Any]] = document["traceEvents"]
    return result, events


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[dict[str, Any]]]:
    return write(tmp_path_factory.mktemp("timeline") / "t.json")


def test_every_request_has_a_slice_where_it_ran_and_one_where_it_waited(told: tuple[Result, list[dict[str, Any]]]):
    result, events = told
    waits = [event for event in events if event["ph"] == "b"]
    over = {event["id"]: event["ts"] for event in events if event["ph"] == "e"}
    assert len(waits) == len(over)
    assert all(over[wait["id"]] > wait["ts"] or wait["name"] != "queue" for wait in waits)
    assert {wait["name"] for wait in waits} == {"queue", "queue, then shed"}
    assert sum(wait["name"] == "queue, then shed" for wait in waits) == result.total.outcomes["shed"] > 0
    assert all(wait["args"]["request"] == wait["id"] for wait in waits)
    runs = {event["name"]: event for event in events if event.get("cat") == "run"}
    assert len(runs) + result.total.outcomes["shed"] == 300
    assert all(runs[id]["ts"] == ts for id, ts in over.items() if id in runs)
    assert all(event["args"]["output tokens"] > 0 and event["args"]["why"] for event in runs.values())


def test_slices_of_a_slot_nest_and_never_overlap(told: tuple[Result, list[dict[str, Any]]]):
    _, events = told
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            (rows if event["cat"] == "run" else steps)[event["tid"]].append(event)
    assert len(rows) == 16  # two replicas of eight slots
    for tid, runs in rows.items():
        runs.sort(key=lambda event: event["ts"])
        assert all(one["ts"] + one["dur"] <= next_["ts"] for one, next_ in itertools.pairwise(runs))
        for run in runs:
            end = run["ts"] + run["dur"]
            inner = [each for each in steps[tid] if run["ts"] <= each["ts"] and each["ts"] + each["dur"] <= end]
            assert [each["name"] for each in inner] == ["to the first token", "decode"][: len(inner)]
            assert inner[0]["ts"] == run["ts"]
            assert sum(each["dur"] for each in inner) == run["dur"]


def test_threads_and_processes_have_names(told: tuple[Result, list[dict[str, Any]]]):
    _, events = told
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {event["tid"] for event in events if event["ph"] == "X"} == set(names)
    assert {name.split(" slot ")[0] for name in names.values()} == {"chat/0.1", "chat/1.1"}
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["service chat"]


def test_counters_tell_the_course(told: tuple[Result, list[dict[str, Any]]]):
    result, events = told
    waiting = [event["args"]["waiting"] for event in events if event["ph"] == "C" and event["name"] == "waiting"]
    assert waiting == [round(value, 4) for value in result.services["chat"].series.waiting if value is not None]
    assert max(waiting) > 5


def test_it_is_bounded(tmp_path: Path):
    _, events = write(tmp_path / "few.json", most=25)
    ids = {event["id"] for event in events if event["ph"] == "b"}
    ids |= {event["name"] for event in events if event.get("cat") == "run"}
    assert len(ids) == 25
