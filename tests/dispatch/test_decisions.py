from __future__ import annotations

import math

import msgspec
import pytest

from foreserve.core import Cost, Forecast, Length, Outcome, OutcomeKind, Ramp, Work
from foreserve.dispatch.decisions import Add, Admitted, FrozenRoom, Line, Made, Picked, Settled, Stood, decoded, encoded
from foreserve.fleet.ahead import FrozenAhead
from foreserve.ports import Pick, QueueView, Refusal


def work(cost: Cost, seconds: float) -> Work:
    length = Length(mean=seconds, p50=1.0, p80=1.0, p95=1.0, source="fast")
    forecast = Forecast(input_tokens=3, output=length, most_tokens=9, seconds=seconds, least_seconds=0.1)
    ramp = Ramp(resource="kv_tokens", base=1, steps=2, most=3)
    return Work(id="w", payload=None, cost=cost, arrival=1.0, deadline=seconds, forecast=forecast, ramp=ramp)


def lines(odd: float) -> list[Line]:
    """Of each kind, with a number where one may be."""
    options = {"aging": odd, "deep": [{"x": odd}], "n": 1, "word": "plain"}
    view = QueueView(waiting=1, running=1, slots=odd, seconds_per_request=odd)
    full = FrozenRoom(replica="null", free={"slots": odd}, capacity={"kv_tokens": odd}, running=1)
    return [
        Made(service="s", policy="p", options=options, placement="inf", admission="a", max_waiting=3, max_wait_s=odd),
        Add(service="nan", now=odd, work=work({"slots": odd}, odd)),
        Picked(service="s", now=1.0, rooms=["inf", full], until=odd),
        Picked(service="s", now=1.0, rooms=[], pick=Pick(ids=("inf",), why="nan")),
        Stood(service="s", now=1.0, place=odd),
        Admitted(service="s", now=1.0, view=view, refusal=Refusal(reason="inf", retry_after=odd)),
        Settled(
            service="s",
            outcome=Outcome(id="w", service="s", kind=OutcomeKind.DONE, arrival=0.0, ended=odd, usage={"tokens": odd}),
        ),
    ]


@pytest.mark.parametrize("odd", [math.inf, -math.inf, 1.5, 1.7976931348623157e308, 5e-324, -0.0])
def test_any_number_comes_back(odd: float):
    for line in lines(odd):
        assert decoded(encoded(line)) == line
        assert b" " not in encoded(line)


def test_what_is_no_number_comes_back_as_that():
    for line in lines(math.nan):
        back = decoded(encoded(line))
        assert repr(back) == repr(line)


def test_what_is_plain_is_written_as_it_was_before():
    for line in lines(2.5):
        assert encoded(line) == msgspec.json.encode(line, order="deterministic")


def test_a_look_ahead_comes_back():
    was = FrozenAhead({"kv_tokens": math.inf, "slots": -math.inf}, {})
    room = FrozenRoom(replica="r", free={}, capacity={}, running=0, ahead=was)
    back = decoded(encoded(Picked(service="s", now=0.0, rooms=[room])))
    assert isinstance(back, Picked)
    assert isinstance(back.rooms[0], FrozenRoom)
    assert msgspec.convert(back.rooms[0].ahead, FrozenAhead, strict=False) == was
