from __future__ import annotations

import msgspec

from foreserve.core import Outcome
from foreserve.simulation.lengths import MOST_KEYS, MOST_LENGTHS, Lengths
from foreserve.simulation.study import simulate
from foreserve.simulation.survey import survey
from foreserve.traces.row import TraceRow
from tests.simulation.traces import Rows, chat, profiles


def done(arrival: float, prompt: int = 40, answer: int = 30, **fields: object) -> TraceRow:
    return TraceRow(arrival=arrival, input_tokens=prompt, output_tokens=answer, outcome="done", **fields)  # type: ignore[arg-type]


def ended(arrival: float, outcome: str, prompt: int = 0, answer: int = 0, **fields: object) -> TraceRow:
    return TraceRow(arrival=arrival, input_tokens=prompt, output_tokens=answer, outcome=outcome, **fields)  # type: ignore[arg-type]


def completed(rows: list[TraceRow], seed: int = 0) -> list[TraceRow]:
    return list(survey(Rows(rows)).lengths.completed(iter(rows), seed))


def test_what_was_not_done_is_as_long_as_its_like_that_was():
    rows = [
        *(done(at, 100 + at, 10 + at, tenant="a") for at in range(20)),
        *(done(20 + at, 1000 + at, 500 + at, tenant="b") for at in range(20)),
        ended(50, "shed", tenant="a"),
        ended(51, "expired", 77, 15, tenant="a"),
        ended(52, "cancelled", 88, 510, tenant="b", most_tokens=515),
    ]
    found = completed(rows)
    assert found[:40] == rows[:40]
    shed, late, left = found[40:]
    assert 10 <= shed.output_tokens < 30
    assert shed.input_tokens == 90 + shed.output_tokens  # lengths of one request, both of them
    assert (late.input_tokens, late.outcome) == (77, "expired")
    assert 15 <= late.output_tokens < 30  # at least what it made
    assert 510 <= left.output_tokens <= 515


def test_a_wider_kind_is_asked_where_the_narrow_one_knows_too_little():
    rows = [
        done(0, 5, 5, service="s", tenant="rare"),
        *(done(at, 50, 50, service="s", tenant="b") for at in range(1, 30)),
        *(done(at, 900, 900, service="other") for at in range(30, 90)),
        ended(95, "shed", service="s", app="unheard"),
        ended(96, "failed", service="s", answer=60),
        ended(97, "failed", service="s", prompt=3, answer=5000),
    ]
    unheard, long, longest = completed(rows)[-3:]
    assert unheard.output_tokens in (5, 50)
    assert long.output_tokens == 900
    assert (longest.input_tokens, longest.output_tokens) == (3, 5000)


def test_a_seed_draws_the_same_again():
    rows = [*(done(at, at, at) for at in range(1, 300)), *(ended(300 + at, "shed") for at in range(50))]
    assert completed(rows, 1) == completed(rows, 1) != completed(rows, 2)


def test_what_is_held_is_bounded_and_a_fair_sample():
    held = Lengths()
    for at in range(20_000):
        held.hear(done(at, 1, 1 + at, tenant=f"t{at}"))
    assert len(held._samples) == MOST_KEYS
    everything = held._samples[()].lengths
    assert len(everything) == MOST_LENGTHS
    assert 0.4 < sum(answer > 10_000 for _, answer in everything) / MOST_LENGTHS < 0.6
    assert everything == sorted(everything, key=lambda pair: pair[1])


def test_a_simulation_plays_them_and_says_so():
    heard: list[Outcome] = []
    rows = [*(done(at, 40, 30) for at in range(20)), *(ended(20 + at, "shed") for at in range(7))]
    result = simulate(chat(), profiles(), Rows(rows), observers=[heard.append])
    assert {each.usage["output_tokens"] for each in heard} == {30.0}
    assert {each.usage["prompt_tokens"] for each in heard} == {40.0}
    assert result.total.outcomes["done"] == 27
    assert "7 rows had no true length (they were not done): drawn from those that were done" in result.notes


def test_where_none_was_done_that_is_said_too():
    result = simulate(chat(), profiles(), Rows([ended(0, "failed", 10, 4)]))
    assert "1 rows had no true length (they were not done), and none was done to draw it from" in result.notes


def test_rows_that_tell_nothing_of_outcomes_stay_as_they_are():
    rows = [TraceRow(arrival=0.0, input_tokens=5), TraceRow(arrival=1.0, seconds=2.0, outcome="failed"), done(2.0)]
    assert completed(rows) == rows
    assert survey(Rows(rows)).lengths.remark() is None


def test_what_is_told_of_a_survey_can_be_written():
    told = survey(Rows([done(0.0), ended(1.0, "shed")])).told()
    assert "lengths" not in told
    assert msgspec.json.encode(told)
