from __future__ import annotations

from typing import Any

import msgspec
import pytest

from foreserve.fleet.autoscaler_wrappers import Bounded, Careful, CoolDown, CoolUp, Hysteresis, ToZero
from foreserve.scaling import Capacity, Scale, ScalingView, Waiting
from tests.fleet.views import after, forecast, foreseen, replica, view


class Says:
    """A policy that wants what it is told to."""

    def __init__(self, wanted: int, **figures: float) -> None:
        self.wanted = wanted
        self.figures = figures

    def decide(self, view: ScalingView, now: float) -> Scale:
        return Scale(wanted=self.wanted, why="so", figures=self.figures)


@pytest.mark.parametrize(("wanted", "given"), [(0, 1), (1, 1), (5, 5), (9, 8)])
def test_bounds_hold_and_say_so(wanted: int, given: int):
    scale = Bounded(Says(wanted)).decide(view(), 0.0)
    assert scale.wanted == given
    assert (scale.why == "so") == (wanted == given)


# --- zero


def zero(wanted: int = 1, **words: Any) -> Scale:
    stand = {"least": 0, "replicas": 1, **words}
    return ToZero(Says(wanted), idle_s=300.0).decide(view(**stand), 0.0)


def test_the_last_goes_when_nothing_has_come_for_long_enough():
    assert zero(idle_s=299.0).wanted == 1
    gone = zero(idle_s=300.0)
    assert (gone.wanted, gone.why) == (0, "nothing has come for 300 s")


@pytest.mark.parametrize(
    "told",
    [{"error": None}, {"error": 6.2}, {"judged_s": 120.0}],
    ids=["never tried", "far off of late", "tried for two minutes"],
)
def test_a_forecast_that_has_not_been_right_wakes_nobody_and_keeps_nobody(told: dict[str, Any]):
    after_a_burst = forecast({"requests": 300.0}, **told)
    asleep = zero(wanted=3, replicas=0, forecast=after_a_burst)
    assert (asleep.wanted, asleep.why) == (0, "at zero; nothing waits and none is due")
    assert zero(wanted=3, idle_s=300.0, forecast=after_a_burst).wanted == 0
    assert zero(wanted=3, replicas=0, forecast=after_a_burst, waiting=Waiting(count=1)).wanted == 3
    assert zero(wanted=3, replicas=0, forecast=forecast({"requests": 300.0})).wanted == 3, "one that was right does"


def test_the_last_is_kept_whatever_the_policy_wants_until_then():
    kept = zero(wanted=0, idle_s=10.0)
    assert kept.wanted == 1
    assert "until idle for 300 s" in kept.why


@pytest.mark.parametrize(
    "busy",
    [
        {"waiting": Waiting(count=1)},
        {"replicas": [replica(running=1)]},
        {"replicas": [replica(known=False)]},
        {"forecast": forecast({"requests": 0.5})},
    ],
    ids=["one waits", "one runs", "one is not known", "load is due"],
)
def test_it_does_not_go_to_zero_while(busy: dict[str, Any]):
    assert zero(**{"idle_s": 900.0, **busy}).wanted == 1


def test_one_comes_back_at_once_when_one_waits():
    back = zero(wanted=0, replicas=0, waiting=Waiting(count=1))
    assert (back.wanted, "one waits" in back.why) == (1, True)


def test_one_comes_back_before_load_that_is_due():
    assert zero(wanted=0, replicas=0, forecast=forecast({"requests": 4.0})).wanted == 1
    assert zero(wanted=3, replicas=0, forecast=forecast({"requests": 4.0})).wanted == 3
    assert zero(wanted=1, replicas=0, forecast=forecast({"requests": 0.1})).wanted == 0


def test_how_far_a_forecast_may_be_off_does_not_keep_one_at_night():
    """Errors are as large as the load of the day: a high quantile is never zero for a service that is busy then."""
    night = forecast({"requests": 40.0}, expected={"requests": 0.0})
    assert zero(idle_s=900.0, forecast=night).wanted == 0
    assert zero(wanted=0, replicas=0, forecast=night).wanted == 0


def test_a_service_with_a_least_is_left_alone():
    assert zero(wanted=0, least=1, idle_s=900.0).wanted == 0


# --- cool-downs


def test_after_adding_no_more_is_added_for_one_start():
    says = Says(2)
    cooled = CoolUp(says)
    stand = view(1)
    assert cooled.decide(stand, 0.0).wanted == 2
    stand = after(stand, 2)
    says.wanted = 4
    held = cooled.decide(stand, 29.0)
    assert held.wanted == 2
    assert "no more than 2" in held.why
    assert cooled.decide(stand, 30.0).wanted == 4


def test_what_was_wanted_may_still_come_within_the_cool_down():
    """A grant may have been refused at first."""
    cooled = CoolUp(Says(3), up_s=60.0)
    assert cooled.decide(view(1), 0.0).wanted == 3
    assert cooled.decide(view(1), 10.0).wanted == 3


def test_fewer_only_once_per_window():
    says = Says(4)
    cooled = CoolDown(says, 60.0)
    assert cooled.decide(view(4), 0.0).wanted == 4
    says.wanted = 3
    times = [float(t) for t in range(1, 200)]
    stand, downs = view(4), []
    for now in times:
        if now == 70.0:
            says.wanted = 1
        scale = cooled.decide(stand, now)
        if scale.wanted < stand.active:
            downs.append((now, scale.wanted))
            stand = after(stand, scale.wanted)
    assert downs == [(61.0, 3), (130.0, 1)]


def test_only_as_few_as_every_decision_of_the_window_asked_for():
    says = Says(2)
    cooled = CoolDown(says, 60.0)
    for now in range(100):
        says.wanted = 3 if now == 80 else 1
        cooled.decide(view(3), float(now))
    says.wanted = 1
    held = cooled.decide(view(4), 120.0)
    assert held.wanted == 3
    assert "3 were wanted within 60 s" in held.why


@pytest.mark.parametrize(("active", "kept"), [(8, 4), (3, 2), (2, 1), (1, 0)])
def test_no_more_than_a_part_of_them_goes_at_once(active: int, kept: int):
    cooled = CoolDown(Says(0), 60.0, part=0.5)
    cooled.decide(view(active), 0.0)
    scale = cooled.decide(view(active), 60.0)
    assert scale.wanted == kept
    assert ("at once" in scale.why) == (active > 1)


def test_without_a_time_of_its_own_it_is_one_window_of_the_forecast():
    cooled = CoolDown(Says(1))
    stand = foreseen(1.0, 2)
    assert [cooled.decide(stand, float(now)).wanted for now in (0, 30, 50, 60)] == [2, 2, 2, 1]


def test_one_that_takes_long_to_start_is_kept_for_two_starts():
    cooled = CoolDown(Says(1))
    stand = foreseen(1.0, 2, start_s=100.0)
    assert [cooled.decide(stand, float(now)).wanted for now in (0, 60, 199, 200)] == [2, 2, 2, 1]


def test_more_is_never_held_back_by_the_cool_down_for_fewer():
    cooled = CoolDown(Says(5), 60.0)
    assert cooled.decide(view(1), 0.0).wanted == 5


# --- while capacity is a guess


def test_by_a_guess_no_more_than_twice_as_many_as_are_ready():
    guess = Capacity(per_s={"tokens": 1.0}, measured=False)
    two = [replica(0), replica(1)]
    scale = Careful(Says(9)).decide(view(two, capacity=guess), 0.0)
    assert (scale.wanted, "9 would be wanted by a guess" in scale.why) == (4, True)
    starting = [*two, replica(2, "starting"), replica(3, "starting")]
    assert Careful(Says(9)).decide(view(starting, capacity=guess), 0.0).wanted == 4, "until they are ready"
    assert Careful(Says(9)).decide(view(0, capacity=guess), 0.0).wanted == 1
    assert Careful(Says(9)).decide(view(2), 0.0).wanted == 9
    assert Careful(Says(1)).decide(view(2, capacity=guess), 0.0).wanted == 1


def test_what_would_fill_more_needs_no_measurement():
    guess = Capacity(per_s={"tokens": 1.0}, measured=False)
    burst = view([replica(0, running=4, share=1.0)], capacity=guess, waiting=Waiting(count=12))
    assert Careful(Says(9)).decide(burst, 0.0).wanted == 8, "16 that run or wait, 4 fill one, and twice as many"
    assert Careful(Says(9)).decide(msgspec.structs.replace(burst, capacity=None), 0.0).wanted == 2


# --- hysteresis


@pytest.mark.parametrize(
    ("needed", "active", "wanted"),
    [(2.1, 2, 3), (1.95, 3, 3), (1.8, 3, 2), (2.8, 3, 3), (0.5, 4, 1)],
)
def test_a_need_that_is_near_a_whole_number_changes_nothing(needed: float, active: int, wanted: int):
    plain = -int(-needed // 1)
    assert Hysteresis(Says(plain, need=needed), down=0.15).decide(view(active), 0.0).wanted == wanted


def test_the_authors_own_hysteresis():
    both = Hysteresis(Says(2, need=1.9), up=0.2, down=0.3)
    assert [both.decide(view(active), 0.0).wanted for active in (1, 2, 3, 4)] == [3, 3, 3, 3]


def test_a_policy_that_tells_no_need_is_left_alone():
    assert Hysteresis(Says(1), down=0.9).decide(view(4), 0.0).wanted == 1
