from __future__ import annotations

import math
import random
from typing import Any

import pytest

from foreserve.app import App
from foreserve.core import Outcome, OutcomeKind
from foreserve.engines.profile import linear
from foreserve.services.upstream import Upstream
from foreserve.simulation.faults import parse_faults
from foreserve.simulation.histogram import Histogram
from foreserve.simulation.need import Need
from foreserve.simulation.study import simulate
from foreserve.simulation.summary import summary
from foreserve.simulation.tally import MOST_NAMES, Tally
from foreserve.simulation.windows import Windows, width_for
from foreserve.traces.histogram import OTHERS
from foreserve.traces.row import TraceRow
from tests.simulation.traces import Rows, chat, poisson, profiles


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_within_one_percent(share: float):
    rng = random.Random(share)
    values = sorted(rng.lognormvariate(-2, 2) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = values[max(1, math.ceil(share * len(values))) - 1]
    assert histogram.quantile(share) == pytest.approx(exact, rel=0.01)


def test_mean_and_extremes_are_exact_and_zero_is_counted():
    histogram = Histogram()
    for value in (0.0, 0.25, 1e12):
        histogram.add(value)
    told = histogram.distribution(curve=10)
    assert told is not None
    assert (told.n, told.min, told.max, told.mean) == (3, 0.0, 1e12, pytest.approx(1e12 / 3))
    assert histogram.quantile(0.0) == 0.0
    assert told.curve[-1][1] == 1.0


def test_of_nothing_there_are_no_figures():
    assert Histogram().quantile(0.5) is None
    assert Histogram().distribution() is None


def test_merged_histograms_are_one():
    one, two, both = Histogram(), Histogram(), Histogram()
    for value in (0.1, 0.2, 0.4):
        one.add(value)
        both.add(value)
    for value in (3.0, 9.0):
        two.add(value)
        both.add(value)
    one.merge(two)
    assert one.bins == both.bins
    assert one.distribution() == both.distribution()


def test_a_curve_rises_to_one_in_few_points():
    histogram = Histogram()
    rng = random.Random(1)
    for _ in range(20_000):
        histogram.add(rng.expovariate(1.0))
    told = histogram.distribution(curve=100)
    assert told is not None
    values, shares = zip(*told.curve, strict=True)
    assert list(values) == sorted(values)
    assert list(shares) == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) < 260


def test_windows_coarsen_and_lose_nothing():
    windows = Windows(1.0, most=8)
    for second in range(100):
        windows.at(second + 0.5).arrived += 1
        windows.at(second + 0.5).ended[OutcomeKind.DONE] += 2
        windows.at(second + 0.5).ttft.add(0.5)
    assert len(windows) <= 8
    assert windows.width_s == 16.0
    assert sum(window.arrived for window in windows) == 100
    assert sum(window.ended[OutcomeKind.DONE] for window in windows) == 200
    assert sum(window.ttft.n for window in windows) == 100
    assert [window.arrived for window in windows][:6] == [16] * 6


def test_windows_of_several_services_end_equally_wide():
    windows = Windows(0.5, most=8)
    windows.at(3.9).arrived += 1
    windows.widen(2.0)
    assert windows.width_s == 2.0
    assert [window.arrived for window in windows] == [0, 1]


@pytest.mark.parametrize(("span_s", "rows"), [(0.0, 0), (10.0, 50), (3600.0, 19_000), (604_800.0, 1_000_000)])
def test_a_trace_has_windows_enough_and_not_too_many(span_s: float, rows: int):
    width = width_for(span_s, rows)
    assert width > 0
    assert span_s / width <= 301


def outcome(**fields: object) -> Outcome:
    values = {
        "id": "r",
        "service": "chat",
        "kind": OutcomeKind.DONE,
        "arrival": 1.0,
        "started": 2.0,
        "first": 3.0,
        "ended": 7.0,
    }
    return Outcome(**{**values, "ended": 7.0, **fields})  # type: ignore[arg-type]


def test_latencies_are_those_of_the_glossary():
    tally = Tally()
    tally.ended(outcome(usage={"prompt_tokens": 10.0, "output_tokens": 5.0}), deadline=6.5)
    tally.ended(outcome(usage={"output_tokens": 1.0}, first=7.0), deadline=None)
    told = tally.figures()
    assert told.wait
    assert told.ttft
    assert told.tpot
    assert told.e2e
    assert (told.wait.mean, told.ttft.min, told.e2e.mean) == (1.0, 2.0, 6.0)
    assert (told.tpot.n, told.tpot.mean) == (1, 1.0)  # (7 - 3) / (5 - 1); an answer of one token has none
    assert told.good == 1  # the first was late
    assert (told.prompt_tokens, told.output_tokens, told.slot_s) == (10, 6, 10.0)


def test_reasons_that_differ_by_numbers_are_one():
    tally = Tally()
    for wait in (31.2, 44.0):
        reason = f"the predicted wait of {wait} s exceeds the limit of 30 s"
        tally.ended(outcome(kind=OutcomeKind.SHED, code="shed", reason=reason, started=None, first=None), None)
    assert tally.figures().reasons == {"the predicted wait of N s exceeds the limit of N s": 2}
    assert tally.figures().codes == {"shed": 2}
    assert tally.figures().e2e is None


def test_tenants_are_counted_by_name_up_to_a_bound():
    rows = [TraceRow(arrival=i / 10, input_tokens=20, output_tokens=5, tenant=f"t{i}") for i in range(MOST_NAMES + 30)]
    tenants = simulate(chat(), profiles(), Rows(rows)).services["chat"].tenants
    assert len(tenants) == MOST_NAMES + 1
    assert tenants[OTHERS].requests == 30
    assert tenants["t3"].requests == 1


def test_tenants_are_named_by_what_they_ask_the_same_in_every_run():
    """One that comes late and asks for much is named, whatever is refused to whom."""
    few = [TraceRow(arrival=i / 10, input_tokens=20, output_tokens=5, tenant=f"t{i}") for i in range(MOST_NAMES + 30)]
    rows = few + [TraceRow(arrival=20.0 + i / 10, input_tokens=20, output_tokens=5, tenant="much") for i in range(40)]
    named = [
        set(simulate(chat(queue={"max_waiting": most}), profiles(), Rows(rows)).services["chat"].tenants)
        for most in (1, 100)
    ]
    assert named[0] == named[1]
    assert "much" in named[0]
    assert len(named[0]) == MOST_NAMES + 1


def test_who_comes_again_is_counted_apart():
    rows = poisson(300, 30.0, seed=1)
    settings: dict[str, Any] = {"queue": {"max_waiting": 4}, "policy": "fcfs"}
    plain = simulate(chat(**settings), profiles(), rows)
    again = simulate(chat(**settings), profiles(), rows, faults=parse_faults("client_retry:share=1", 1))
    assert plain.total.retries == 0
    assert again.total.retries > 50
    assert plain.total.requests == again.total.requests == 300
    assert sum(again.total.outcomes.values()) == 300 + again.total.retries
    one, two = plain.services["chat"], again.services["chat"]
    assert two.need_replicas == one.need_replicas
    assert sum(two.series.arrivals) == pytest.approx(sum(one.series.arrivals), rel=0.05)
    assert again.span_s == plain.span_s
    assert again.ended_s > plain.ended_s
    assert any(row.label == "sent again by clients" for row in summary([again], None))


def test_a_series_tells_what_came_and_how_full_it_was():
    result = simulate(chat(), profiles(), poisson(300, 6.0))
    series = result.services["chat"].series
    assert sum(series.arrivals[:-1]) * series.width_s == pytest.approx(300, abs=40)
    assert max(value for value in series.slots_used if value is not None) <= 1.0
    assert [value for value in series.ready if value is not None] == pytest.approx([1.0] * len(series.ready))
    assert any(value for value in series.ttft_p99)
    assert len({len(column) for column in (series.arrivals, series.need, series.waiting, series.e2e_p50)}) == 1


STEADY = linear(slots=4, kv_tokens=100_000, prefill_s_per_token=0.0, decode_s=0.01, decode_s_per_seq=0.0, start_s=50.0)
"""An answer of n tokens takes n hundredths of a second, whatever runs beside it."""


def test_occupancy_is_exact_where_all_that_comes_keeps_step_with_the_windows():
    """A look at every whole second would find nothing at all."""
    rows = [TraceRow(arrival=float(i), input_tokens=1, output_tokens=36) for i in range(100)]
    heard: list[Outcome] = []
    result = simulate(chat(), profiles(chat=STEADY), Rows(rows), observers=[heard.append])
    held_s = sum(one.ended - one.started for one in heard if one.started is not None)
    assert held_s == pytest.approx(100 * 0.36, rel=0.05)
    told = result.services["chat"]
    assert told.busy == pytest.approx(held_s / result.ended_s, rel=1e-6)
    assert told.slots_used == pytest.approx(held_s / (4 * result.ended_s), rel=1e-6)
    assert told.series.slots_used[5] == pytest.approx(held_s / 100 / 4, rel=1e-6)
    assert told.series.running[5] == pytest.approx(held_s / 100, rel=1e-6)
    assert told.most_waiting == 0


def test_two_at_once_are_busy_once_and_fill_two_slots():
    rows = [TraceRow(arrival=10.0 * i, input_tokens=1, output_tokens=100) for i in range(30) for _ in range(2)]
    result = simulate(chat(replicas=1), profiles(chat=STEADY), Rows(rows))
    told = result.services["chat"]
    assert told.busy is not None
    assert told.slots_used == pytest.approx(2 * told.busy / 4, rel=1e-6)
    assert told.busy == pytest.approx(30 * 1.0 / result.ended_s, rel=0.05)


def test_the_most_that_waited_is_the_most_there_ever_were():
    """Bursts of a second in days: no look is likely to meet one."""
    rows = [
        TraceRow(arrival=86_400.0 * day + 7.7, input_tokens=1, output_tokens=5) for day in range(3) for _ in range(20)
    ]
    told = simulate(chat(queue={"max_waiting": 50}), profiles(chat=STEADY), Rows(rows)).services["chat"]
    assert told.most_waiting == 16  # of 20 that came at once, four had a slot
    assert sorted(told.series.most_waiting)[-4:] == [0, 16, 16, 16]


def test_replica_hours_are_those_of_every_replica_from_its_launch():
    rows = [TraceRow(arrival=float(i), input_tokens=1, output_tokens=36) for i in range(100)]
    result = simulate(chat(replicas=3), profiles(chat=STEADY), Rows(rows))
    assert result.start_s == 50.0
    assert result.services["chat"].replica_hours == pytest.approx(3 * (50.0 + result.ended_s) / 3600, rel=1e-6)
    assert result.services["chat"].series.replicas[3] == pytest.approx(3.0)


def test_a_replica_that_dies_counts_until_then_and_its_successor_from_its_launch():
    rows = [TraceRow(arrival=float(i), input_tokens=1, output_tokens=36) for i in range(300)]
    plan = parse_faults("worker_death:every_s=40;in_start=0", 1)
    result = simulate(chat(replicas=1), profiles(chat=STEADY), Rows(rows), faults=plan)
    told = result.services["chat"]
    assert plan.happened
    assert told.busy is not None
    assert told.busy < 0.5
    assert min(value for value in told.series.ready if value is not None) < 0.5  # while it starts
    assert told.replica_hours < (50.0 + result.ended_s) / 3600 + 1e-9


def test_slots_are_those_that_the_gateway_bounds_itself_by():
    """Of an upstream service its own setting, whatever the profile has."""
    rows = [TraceRow(arrival=float(i), input_tokens=1, output_tokens=36) for i in range(50)]
    app = App(chat=Upstream(["http://127.0.0.1:9/v1"], max_running=2), state={"history": False})
    result = simulate(app, profiles(chat=STEADY), Rows(rows))
    told = result.services["chat"]
    assert told.busy is not None
    assert told.busy > 0.3
    assert told.slots_used == pytest.approx(told.busy / 2, rel=1e-6)


def test_the_time_of_a_span_goes_to_its_windows():
    windows = Windows(2.0)
    assert [(windows.at(0.0), 0.5)] == list(windows.during(1.0, 1.5))
    found = list(windows.during(1.0, 7.0))
    assert [window for window, _ in found] == [*list(windows)[:3], windows.at(7.0)]
    assert [seconds for _, seconds in found] == [1.0, 2.0, 2.0, 1.0]
    assert not list(windows.during(3.0, 3.0))
    narrow = Windows(1.0, most=4)
    assert sum(seconds for _, seconds in narrow.during(0.25, 100.0)) == pytest.approx(99.75)


def test_need_is_what_a_full_batch_costs():
    profile = linear(slots=4, kv_tokens=100_000, prefill_s_per_token=0.001, decode_s=0.03, decode_s_per_seq=0.01)
    need = Need(profile)
    assert need.seconds(100, 10) == pytest.approx(0.1 + 10 * 0.06 / 4, rel=0.01)
    tight = linear(slots=4, kv_tokens=2000, context_tokens=2000, decode_s=0.03, decode_s_per_seq=0.01)
    assert Need(tight).seconds(0, 2000) == pytest.approx(2000 * 0.04 / 2, rel=0.01)
    assert Need(tight).seconds(1500, 100) > 1500 * 0.0005 + 100 * 0.03 * 0.99  # one at a time fits
