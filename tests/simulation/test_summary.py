from __future__ import annotations

import msgspec
import pytest

from foreserve.simulation.study import simulate
from foreserve.simulation.summary import change, duration, number, span, summary
from foreserve.simulation.verdict import notes
from tests.simulation.traces import chat, poisson, profiles


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0, "0.0 ms"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (3.456, "3.46 s"), (45.6, "45.6 s"), (125, "2 min 5 s")],
)
def test_a_time_is_told_in_its_unit(seconds: float, told: str):
    assert duration(seconds) == told


@pytest.mark.parametrize(("seconds", "told"), [(59, "59 s"), (3700, "1 h 1 min"), (604_800, "7 d 0 h"), (0.5, "0.5 s")])
def test_a_span_is_told_in_two_units(seconds: float, told: str):
    assert span(seconds) == told


def test_numbers_keep_three_digits():
    assert [number(value) for value in (0.0, 0.1234, 1.234, 12.34, 1234.5)] == [
        "0.00",
        "0.123",
        "1.23",
        "12.3",
        "1,234",
    ]


def test_changes_are_shares_of_the_first_or_multiples_of_it():
    assert [change(value) for value in (None, 0.0, 0.123, -0.5, -0.021, 12.0)] == [
        "",
        "=",
        "+12 %",
        "-50 %",
        "-2.1 %",
        "×13.0",
    ]


def test_a_run_beside_another_tells_what_became_better():
    trace = poisson(200, 12.0, deadline_s=3.0)
    rows = {
        row.label: row
        for row in summary([simulate(chat(replicas=n), profiles(), trace, name=str(n)) for n in (1, 3)], None)
    }
    assert rows["replica-hours"].better == "lower"
    hours, good = rows["replica-hours"].changes[1], rows["goodput (done in time), requests/s"].changes[1]
    assert hours is not None
    assert hours > 1.0
    assert good is not None
    assert good > 0.0
    assert rows["TTFT p99"].changes[0] == 0.0
    assert rows["done"].values == [f"{n:,}" for n in (int(value) for value in rows["done"].values)]
    assert {row.live for row in rows.values()} == {""}
    assert any(row.group == "why not done" for row in rows.values())


def test_a_figure_that_a_run_lacks_is_a_dash():
    none = simulate(chat(), profiles(), poisson(5, 1.0, deadline_s=1e-9))
    some = simulate(chat(), profiles(), poisson(5, 1.0))
    row = next(row for row in summary([none, some], None) if row.label == "end-to-end p50")
    assert row.values[0] == "-"
    assert row.changes == [None, None]


def test_notes_are_told_once_or_with_the_name_of_their_run():
    plain = simulate(chat(), profiles(), poisson(3, 1.0))
    one = msgspec.structs.replace(plain, name="one", notes=["both", "mine"])
    two = msgspec.structs.replace(plain, name="two", notes=["both"], findings=[f"room at {n}" for n in range(7)])
    told = notes([one, two])
    assert told[0] == "warning: two: does not hold: room at 0"
    assert told[-3:] == ["warning: two: does not hold: 2 further findings", "both", "one: mine"]
    assert len(told) == 8
    assert notes([one]) == ["both", "mine"]


def test_the_reasons_add_up_to_what_was_not_done():
    result = simulate(chat(), profiles(), poisson(20, 2.0))
    reasons = {
        "N s predicted wait and N s of work exceed its deadline in N s": 40,
        "the predicted wait of N s exceeds the limit of N s": 30,
        "the queue is full: N requests wait (limit N)": 20,
        "the queue is full: N requests wait (limit N), N of them its tenant's": 5,
        **{f"replica chat/{letter} was lost": 1 for letter in "abcd"},
    }
    lost = msgspec.structs.replace(result, total=msgspec.structs.replace(result.total, reasons=reasons))
    why = [(row.label, row.values[0]) for row in summary([lost], None) if row.group == "why not done"]
    assert why == [
        ("a wait predicted beyond the deadline", "40"),
        ("a wait predicted beyond the limit", "30"),
        ("the queue was full", "25"),
        ("replica chat/a was lost", "1"),
        ("3 other reasons", "3"),
    ]
