"""Simulated services whose number of replicas follows the load."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreserve.core import Outcome
from foreserve.engines.profile import linear
from foreserve.simulation.figures import Result
from foreserve.simulation.past import Past, parted
from foreserve.simulation.report import page
from foreserve.simulation.study import simulate
from foreserve.simulation.survey import survey
from foreserve.simulation.timeline import Timeline
from foreserve.traces.row import TraceRow
from tests.simulation.test_report import charts
from tests.simulation.traces import Rows, chat, poisson, profiles

START_S = 3.0
PROFILE = linear(
    slots=8, kv_tokens=20_000, prefill_s_per_token=0.0005, decode_s=0.02, decode_s_per_seq=0.001, start_s=START_S
)
SCALING = {"window_s": 10.0, "forecaster": "last_value", "every_s": 1.0}


def rises(seconds: float = 240.0, peak: float = 16.0, seed: int = 0) -> Rows:
    """From hardly anything to `peak` requests a second and back: one replica does about 9."""
    rng, rows, at = random.Random(seed), list[TraceRow](), 0.0
    while (at := at + rng.expovariate(peak)) < seconds:
        if rng.random() < 0.03 + math.sin(math.pi * at / seconds) ** 4:
            rows.append(TraceRow(arrival=at, input_tokens=100, output_tokens=rng.randint(1, 60), most_tokens=128))
    return Rows(rows)


def play(replicas: object, trace: Rows | None = None, heard: list[Outcome] | None = None, **words: Any) -> Result:
    app = chat(replicas=replicas) if isinstance(replicas, int) else chat(replicas=replicas, scaling=SCALING)
    observers = [] if heard is None else [heard.append]
    return simulate(app, profiles(chat=PROFILE), trace or rises(), observers=observers, **words)


@pytest.fixture(scope="module")
def scaled() -> Result:
    return play([1, 4], name="scaled")


def test_replicas_come_with_the_load_and_leave_after_it(scaled: Result):
    chat = scaled.services["chat"]
    assert chat.scaling is not None
    assert chat.scaling.starts >= 1
    assert chat.scaling.stops >= 1
    present = [value for value in chat.series.replicas if value is not None]
    assert present[0] == pytest.approx(1.0)
    assert max(present) > 1.9
    assert present[-1] < max(present)
    assert scaled.total.outcomes["done"] == scaled.total.requests


def test_only_what_there_is_is_paid_for(scaled: Result):
    four = play(4)
    hours = scaled.services["chat"].replica_hours
    assert hours < 0.9 * four.services["chat"].replica_hours
    series = scaled.services["chat"].series
    # From the beginning of the trace on; the first start is paid for too.
    during = sum(value or 0.0 for value in series.replicas[:-1]) * series.width_s
    assert during < 3600 * hours < during + START_S + 5 * series.width_s


def test_what_was_wanted_and_foreseen_is_told_over_time(scaled: Result):
    series = scaled.services["chat"].series
    wanted = [value for value in series.wanted if value is not None]
    foreseen = [value for value in series.foreseen if value is not None]
    assert max(wanted) >= 2.0
    assert all(1.0 <= value <= 9.0 for value in wanted)
    assert max(foreseen) > 1.0


def test_each_change_is_told_with_its_reason(scaled: Result):
    scaling = scaled.services["chat"].scaling
    assert scaling is not None
    assert scaling.changes == len(scaling.decisions) > 1
    assert scaling.added == sum(max(each.granted - each.active, 0) for each in scaling.decisions)
    assert scaling.taken == sum(max(each.active - each.granted, 0) for each in scaling.decisions)
    assert all(each.granted != each.active and each.why for each in scaling.decisions)
    times = [each.at for each in scaling.decisions]
    assert times == sorted(times)
    assert 0.0 <= times[0] <= times[-1] <= scaled.ended_s


def test_a_fixed_number_has_no_scaling():
    fixed = play(2).services["chat"]
    assert fixed.scaling is None
    assert all(value is None for value in (*fixed.series.wanted, *fixed.series.foreseen))


def test_the_same_run_gives_the_same_bytes(scaled: Result):
    assert msgspec.json.encode(play([1, 4], name="scaled")) == msgspec.json.encode(scaled)


def test_ticks_do_not_keep_a_simulation_from_ending():
    """Nothing comes for six hours, then one request: those are 10,000 looks."""
    rows = Rows([TraceRow(arrival=at, input_tokens=10, output_tokens=5) for at in (1.0, 21_600.0)])
    app = chat(replicas=[1, 2], scaling={"every_s": 2.0, "window_s": 600.0, "forecaster": "last_value"})
    result = simulate(app, profiles(chat=PROFILE), rows)
    assert result.total.outcomes["done"] == 2
    assert result.ended_s < 21_610.0


def test_a_service_without_replicas_starts_one_for_the_first_request():
    rows = Rows([TraceRow(arrival=at, input_tokens=10, output_tokens=5) for at in (5.0, 900.0)])
    heard: list[Outcome] = []
    app = chat(replicas=[0, 1], scaling={**SCALING, "idle_s": 60.0})
    result = simulate(app, profiles(chat=PROFILE), rows, observers=[heard.append])
    assert [each.kind.value for each in heard] == ["done", "done"]
    assert all(START_S < (each.first or 0.0) - each.arrival < START_S + 3.0 for each in heard)
    chat_ = result.services["chat"]
    assert chat_.replica_hours < 400.0 / 3600.0
    assert chat_.scaling is not None
    assert chat_.scaling.stops >= 1


def test_the_report_and_the_timeline_show_it(scaled: Result, tmp_path: Path):
    trace = rises()
    drawn = charts(page(trace, survey(trace), [scaled, play(2, name="two")]))
    lines = [line["name"] for line in drawn["Replicas against need"]["traces"]]
    assert lines == ["need", "scaled", "two", "scaled wanted", "scaled foreseen"]
    assert "Replicas paid for" in drawn
    with Timeline(tmp_path / "t.json", 10) as timeline:
        timeline.courses(scaled)
    events = msgspec.json.decode((tmp_path / "t.json").read_bytes())["traceEvents"]
    marks = [event for event in events if event["ph"] == "i"]
    scaling = scaled.services["chat"].scaling
    assert scaling is not None
    assert len(marks) == len(scaling.decisions)
    assert marks[0]["name"] == f"{scaling.decisions[0].active} to {scaling.decisions[0].granted} replicas"
    assert marks[0]["args"]["why"] == scaling.decisions[0].why
    assert {"wanted", "foreseen"} <= {event["name"] for event in events if event["ph"] == "C"}


# --- the past


class Twice:
    """A trace and itself again, `span_s` later."""

    skipped = 0

    def __init__(self, rows: Rows, span_s: float) -> None:
        self.header, self._rows, self._span_s = rows.header, rows.rows, span_s

    def __iter__(self) -> Iterator[TraceRow]:
        yield from self._rows
        for row in self._rows:
            yield msgspec.structs.replace(row, arrival=row.arrival + self._span_s)

    def __len__(self) -> int:
        return 2 * len(self._rows)


def test_the_past_is_learned_from_and_not_played():
    heard: list[Outcome] = []
    past, rest = parted(Twice(poisson(300, 5.0), 70.0), 70.0)
    app = chat(replicas=[1, 4], scaling=SCALING)
    result = simulate(app, profiles(chat=PROFILE), rest, observers=[heard.append], past=past)
    assert result.total.requests == len(heard) == 300
    assert "1 min 10 s before it were not played: loads and lengths were learned from them" in result.notes
    # The first request is foreseen by what was learned, where nothing would be known of it.
    assert heard[0].forecast is not None
    assert heard[0].forecast.output.source != "limit"


def test_what_came_in_the_past_is_counted_by_windows():
    rows = [TraceRow(arrival=float(at), input_tokens=10, output_tokens=3) for at in range(0, 100, 5)]
    past = Past(Rows(rows), 60.0)
    windows = past.windows("chat", "chat", 20.0, end=1000.0)
    assert [window.at for window in windows] == [940.0, 960.0, 980.0]
    assert [window.amounts["requests"] for window in windows] == [4.0, 4.0, 4.0]
    assert windows[0].amounts["output_tokens"] == 12.0
    assert [window.amounts["requests"] for window in past.windows("other", "chat", 20.0, end=1000.0)] == [0.0, 0.0, 0.0]
    # A window of which only a part was there is not told.
    assert [window.at for window in past.windows("chat", "chat", 20.0, end=1010.0)] == [960.0, 980.0]
