from __future__ import annotations

import msgspec
import pytest

from foreserve.fleet.autoscaler import Hybrid
from foreserve.fleet.autoscaler_headroom import MOST, RAISE, Headroom
from foreserve.scaling import ScalingView, Waiting
from tests.fleet.views import foreseen, replica, view

QUIET = view(1)
LATE = msgspec.structs.replace(QUIET, waiting=Waiting(count=3, oldest_s=5.0))
WINDOW_S = 60.0


def look(headroom: Headroom, stand: ScalingView, begin: float, seconds: float) -> float:
    for step in range(int(seconds / 2.0)):
        headroom.look(stand, begin + 2.0 * step)
    return begin + seconds


def test_an_episode_of_waiting_raises_it_once():
    headroom = Headroom(2.0, 1e9)
    now = look(headroom, QUIET, 0.0, 60.0)
    assert headroom.factor == 1.0
    now = look(headroom, LATE, now, 90.0)
    now = look(headroom, QUIET, now, 30.0)
    now = look(headroom, LATE, now, 30.0)  # the same one, within a window
    assert headroom.factor == pytest.approx(1.0 + RAISE)
    now = look(headroom, QUIET, now, 2 * WINDOW_S)
    look(headroom, LATE, now, 4.0)
    assert headroom.factor == pytest.approx(1.0 + 2 * RAISE)


def test_it_falls_back_by_as_much_in_so_many_windows():
    headroom = Headroom(2.0, 10.0)
    now = look(headroom, LATE, 0.0, 4.0)
    raised = headroom.factor
    look(headroom, QUIET, now, 5 * WINDOW_S)
    assert headroom.factor == pytest.approx(raised - RAISE / 2, abs=0.01)
    look(headroom, QUIET, now + 5 * WINDOW_S, 20 * WINDOW_S)
    assert headroom.factor == 1.0


def test_a_burst_that_nothing_foretold_does_not_raise_it():
    headroom = Headroom(2.0, 1e9)
    headroom.look(LATE, 0.0, needed=1.0 / MOST)  # not even the most of it would have kept a second one
    assert headroom.factor == 1.0
    headroom = Headroom(2.0, 1e9)
    headroom.look(LATE, 0.0, needed=1.1 / MOST)
    assert headroom.factor == pytest.approx(1.0 + RAISE)


def test_it_is_bounded():
    headroom = Headroom(2.0, 1e9)
    now = 0.0
    for _ in range(20):
        now = look(headroom, LATE, now, 4.0)
        now = look(headroom, QUIET, now, 2 * WINDOW_S)
    assert headroom.factor == pytest.approx(MOST)


@pytest.mark.parametrize(
    "stand",
    [
        msgspec.structs.replace(QUIET, waiting=Waiting(count=3, oldest_s=1.0)),
        msgspec.structs.replace(LATE, replicas=(replica(0, "starting"),)),
        msgspec.structs.replace(LATE, replicas=()),
    ],
    ids=["not for long", "none is ready", "there is none"],
)
def test_what_more_room_would_not_have_helped_does_not_count(stand: ScalingView):
    headroom = Headroom(2.0, 100.0)
    look(headroom, stand, 0.0, 60.0)
    assert headroom.factor == 1.0


def test_it_need_not_be_learned():
    headroom = Headroom(2.0, None)
    look(headroom, LATE, 0.0, 60.0)
    assert headroom.factor == 1.0


def test_the_hybrid_policy_keeps_more_where_requests_have_waited():
    calm = foreseen(15.0, 2)
    late = msgspec.structs.replace(calm, waiting=Waiting(count=3, oldest_s=5.0))
    policy, other = Hybrid(), Hybrid(seldom=None)
    for each in (policy, other):
        each.decide(late, 0.0)
    assert other.decide(calm, 2.0).figures["need"] == pytest.approx(1.5)
    assert policy.decide(calm, 2.0).figures["need"] == pytest.approx(1.5 * (1.0 + RAISE), rel=0.01)
    assert policy.decide(calm, 2.0).figures["headroom"] == pytest.approx(1.0 + RAISE, rel=0.01)
