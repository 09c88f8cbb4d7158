"""The policies, and the acceptance list of the specification as far as it is about scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve import registry
from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler import Forecast, Hybrid, Reactive, Static
from foreserve.fleet.autoscaler_thresholds import Thresholds
from foreserve.scaling import Scale, ScalingPolicy, ScalingView, Waiting
from tests.fleet.views import after, forecast, foreseen, replica, view

AHEAD = "for the 60 s that begin in 40 s (p80, gradient boosting)"


def play(policy: ScalingPolicy, stand: ScalingView, times: range) -> list[tuple[int, int]]:
    """When it wanted another number, and which; what it wants happens at once."""
    changes = []
    for now in times:
        scale = policy.decide(stand, float(now))
        if scale.wanted != stand.active:
            changes.append((now, scale.wanted))
            stand = after(stand, scale.wanted)
    return changes


# --- static


def test_static_holds_what_there_is_or_what_it_was_told():
    assert Static().decide(view(3), 0.0).wanted == 3
    assert Static(replicas=5).decide(view(3), 0.0).wanted == 5


# --- reactive


@pytest.mark.parametrize(
    ("running", "waiting", "wanted"),
    [(8, 0, 2), (5, 0, 1), (6, 0, 1), (8, 20, 5), (0, 0, 1)],
    ids=["full", "below", "within the tolerance", "and a queue", "idle"],
)
def test_reactive_keeps_each_at_its_target(running: int, waiting: int, wanted: int):
    stand = view([replica(0, running=running)], waiting=Waiting(count=waiting))
    assert Reactive(target=0.7).decide(stand, 0.0).wanted in {wanted, 1 if wanted == 0 else wanted}


def test_reactive_by_a_target_of_ongoing_requests():
    stand = view([replica(0, running=2), replica(1, running=2)], waiting=Waiting(count=5))
    scale = Reactive(target_ongoing=3.0).decide(stand, 0.0)
    assert scale.wanted == 3
    assert scale.why == "9 requests run or wait against a target of 3 per replica"


def test_reactive_goes_down_after_its_delay_and_never_on_stale_metrics():
    idle = view(4)
    assert play(Reactive(down_s=100.0), idle, range(0, 300, 10)) == [(100, 0)]
    stale = view([*(replica(n) for n in range(3)), replica(3, known=False)])
    assert play(Reactive(down_s=100.0), stale, range(0, 300, 10)) == []


# --- forecast


def test_forecast_follows_the_high_quantile_alone():
    stand = view(2, forecast=forecast({"tokens": 60 * 24.0}, {"tokens": 60 * 12.0}), waiting=Waiting(count=900))
    scale = Forecast(target=1.0).decide(stand, 0.0)
    assert scale.wanted == 3
    assert scale.why == f"forecast 24 tokens/s {AHEAD} against 10 per replica"
    assert scale.figures["need"] == pytest.approx(2.4)


def test_forecast_holds_while_capacity_is_not_known():
    scale = Forecast().decide(foreseen(50.0, 2, capacity=None), 0.0)
    assert scale.wanted == 2
    assert "not known yet" in scale.why


def test_a_forecast_of_what_runs_or_comes_at_once_is_not_told_in_fractions_of_a_second():
    stand = view(2, forecast=forecast({"tokens": 60 * 24.0}, at=1000.0))
    assert Forecast().decide(stand, 0.0).why.startswith("forecast 24 tokens/s for the next 60 s (p80, ")


# --- hybrid: the floor


def test_the_forecast_sets_the_floor():
    scale = Hybrid().decide(foreseen(20.5, 1, recent={"tokens": 9.0}), 0.0)
    assert scale.wanted == 3
    assert scale.why.startswith(f"forecast 20.5 tokens/s {AHEAD} against 10 per replica")
    assert "nothing waits" in scale.why


def test_of_what_a_replica_can_do_no_more_than_the_target_is_asked():
    assert [
        Hybrid(target=target).decide(foreseen(20.5, 1, recent={"tokens": 9.0}), 0.0).wanted
        for target in (1.1, 1.0, 0.6)
    ] == [2, 3, 4]


def test_what_starts_counts_as_there():
    stand = after(foreseen(20.5, 1), 3)
    assert Hybrid().decide(stand, 0.0).wanted == 3


def test_while_nothing_is_foreseen_the_load_of_late_sets_it():
    scale = Hybrid().decide(view(1, recent={"tokens": 15.0}), 0.0)
    assert scale.wanted == 2
    assert "of late" in scale.why


# --- hybrid: anticipated overload


def test_one_overload_episode_adds_exactly_one():
    stand = foreseen(5.0, [replica(0, share=1.0)])
    assert play(Hybrid(), stand, range(0, 600, 2)) == [(0, 2)]


def test_an_overload_that_comes_back_after_it_has_ended_adds_again():
    policy = Hybrid()
    full, calm = foreseen(5.0, [replica(0, share=1.0)]), foreseen(5.0, 2)
    assert policy.decide(full, 0.0).wanted == 2
    assert policy.decide(calm, 40.0).wanted == 2
    again = foreseen(5.0, [replica(0, share=1.0), replica(1)])
    assert policy.decide(again, 80.0).wanted == 3


def test_a_map_that_goes_up_and_down_is_one_episode():
    policy = Hybrid()
    full, calm = foreseen(5.0, [replica(0, share=1.0), replica(1)]), foreseen(5.0, 2)
    assert policy.decide(full, 0.0).wanted == 3
    stand = after(full, 3)
    wanted = [policy.decide(stand if now % 4 else after(calm, 3), float(now)).wanted for now in range(2, 200, 2)]
    assert set(wanted) == {3}


def test_an_overload_that_was_answered_long_ago_does_not_bring_back_what_has_left_since():
    policy = Hybrid()
    full = foreseen(5.0, [replica(0, share=1.0), replica(1, share=1.0)])
    assert policy.decide(full, 0.0).wanted == 4
    fewer = foreseen(5.0, [replica(0), replica(1)])  # two of them have left, and the episode goes on
    for now in range(2, 20, 2):
        policy.decide(fewer, float(now))
    again = foreseen(5.0, [replica(0, share=1.0), replica(1)])
    assert policy.decide(again, 20.0).wanted == 2


def test_each_overloaded_replica_adds_one():
    stand = foreseen(5.0, [replica(0, share=1.0), replica(1, share=1.0), replica(2)])
    scale = Hybrid().decide(stand, 0.0)
    assert scale.wanted == 5
    assert "2 replicas foreseen above 95 % of its memory (s/0.1, s/1.1)" in scale.why


def test_a_queue_that_a_start_would_not_outlive_adds_what_clears_it_once():
    # 120 s of one replica wait; by the time of a start 30 s of them are gone; 30 s later all of them shall be.
    stand = foreseen(1.0, 1, waiting=Waiting(count=30, seconds=8 * 120.0, predicted_wait_s=60.0))
    assert play(Hybrid(), stand, range(0, 20, 2)) == [(0, 4)]


def test_a_queue_that_is_gone_before_a_start_adds_none():
    stand = foreseen(1.0, 1, waiting=Waiting(count=6, seconds=8 * 20.0, predicted_wait_s=15.0))
    assert play(Hybrid(), stand, range(0, 20, 2)) == []


def test_a_queue_of_which_nothing_is_known_adds_one_at_a_time():
    stand = view(1, capacity=None, recent={}, waiting=Waiting(count=9))
    assert play(Hybrid(), stand, range(0, 100, 2)) == [(0, 2)]


def test_what_finds_a_free_slot_at_once_adds_none():
    stand = view(1, capacity=None, recent={}, waiting=Waiting(count=8))
    assert play(Hybrid(), stand, range(0, 100, 2)) == []


@pytest.mark.parametrize("told", [None, 0.5], ids=["no wait is foreseen", "too short a wait is foreseen"])
def test_while_nobody_knows_what_one_can_do_requests_are_gone_by(told: float | None):
    """A queue that builds up before a request has ended is not waited out."""
    full = [replica(0, running=8)]
    queue = Waiting(count=9, seconds=4.0, oldest_s=1.0, predicted_wait_s=told)
    stand = foreseen(50.0, full, capacity=None, waiting=queue)
    policy = Hybrid()
    scale = policy.decide(stand, 0.0)
    assert scale.wanted == 2, "three would have slots for all; no more than twice as many while nothing is known"
    assert scale.why.startswith("8 run and 9 wait")
    assert "on 8 slots: added by requests alone" in scale.why
    assert "not known yet" in scale.why
    assert "held" not in scale.why
    assert policy.decide(after(stand, 2), 2.0).wanted == 2, "until it is ready"
    more = [replica(0, running=8), replica(1, running=8)]
    again = foreseen(50.0, more, capacity=None, waiting=Waiting(count=20, oldest_s=9.0, predicted_wait_s=told))
    assert policy.decide(again, 60.0).wanted == 4


@pytest.mark.parametrize(("oldest_s", "wanted"), [(1.0, 1), (2.5, 2)])
def test_a_short_queue_adds_one_only_when_it_lasts(oldest_s: float, wanted: int):
    queue = Waiting(count=3, seconds=1.0, oldest_s=oldest_s, predicted_wait_s=0.5)
    stand = view([replica(0, running=8)], capacity=None, recent={}, waiting=queue)
    assert play(Hybrid(), stand, range(0, 20, 2)) == ([] if wanted == 1 else [(0, wanted)])


def test_more_than_was_foreseen_adds_before_a_queue_has_built_up():
    stand = foreseen(5.0, 2, recent={"tokens": 30.0})
    scale = Hybrid().decide(stand, 0.0)
    assert scale.wanted == 4
    assert "30 tokens/s came of late" in scale.why


# --- hybrid: fewer


def burst(seconds: float) -> ScalingView:
    """A replica that is full, and a queue that has grown by 4 s of its work each second, of which means tell little."""
    queue = Waiting(count=int(16 * seconds), seconds=32.0 * seconds, oldest_s=seconds, predicted_wait_s=4.0 * seconds)
    return foreseen(1.0, [replica(0, running=8)], waiting=queue, most=16)


def test_a_queue_that_grows_tells_how_much_comes_before_means_do():
    policy = Hybrid()
    for now in range(0, 10, 2):
        policy.decide(burst(now), float(now))
    scale = policy.decide(burst(10), 10.0)
    assert scale.figures["busy"] == pytest.approx(1.0 + 4.0), "what the replica does, and what the queue grows by"
    assert scale.wanted >= 5


def test_what_comes_at_once_is_no_flow():
    policy = Hybrid()
    policy.decide(burst(0), 0.0)
    for now in (2.0, 4.0, 20.0):
        scale = policy.decide(burst(1), now)
    assert scale.figures["busy"] == pytest.approx(0.1), "it has not grown since"


def test_a_burst_that_grows_while_a_start_goes_on_adds_more_at_once():
    policy = Hybrid()
    policy.decide(burst(0), 0.0)
    first = policy.decide(burst(2), 2.0)
    more = after(burst(6), first.wanted)
    assert policy.decide(more, 6.0).wanted > first.wanted


def test_replicas_that_a_queue_fills_are_no_overload_of_their_own():
    queue = Waiting(count=4, seconds=4.0, oldest_s=1.0, predicted_wait_s=0.5)
    stand = foreseen(15.0, [replica(n, running=8, share=1.0) for n in range(2)], waiting=queue)
    assert Hybrid().decide(stand, 0.0).wanted == 2
    assert Hybrid().decide(msgspec.structs.replace(stand, waiting=Waiting()), 0.0).wanted == 4


def test_fewer_once_per_window():
    policy, stand = Hybrid(), foreseen(1.0, 4)
    assert play(policy, stand, range(0, 600, 2)) == [(60, 2), (120, 1)]


@pytest.mark.parametrize(
    ("stand", "why"),
    [
        (foreseen(1.0, [*(replica(n) for n in range(3)), replica(3, known=False)]), "nothing fresh is known of s/3.1"),
        (foreseen(1.0, 4, recent={"tokens": 33.0}), ""),
        (
            view(4, recent={"tokens": 1.0}, forecast=forecast({"tokens": 60 * 8.0}, low={"tokens": 60 * 6.0})),
            "foreseen to rise",
        ),
        (foreseen(1.0, [replica(n, running=7) for n in range(4)]), "keeps 3.5 replicas full"),
        (view([replica(n, running=3) for n in range(4)], capacity=None, recent={}), ""),
    ],
    ids=["one is stale", "much came of late", "it will rise", "they are full", "nothing is known, and they work"],
)
def test_not_fewer_while(stand: ScalingView, why: str):
    policy = Hybrid()
    scales = [policy.decide(stand, float(now)) for now in range(0, 600, 10)]
    assert {scale.wanted for scale in scales} == {4}
    assert why in scales[-1].why


def test_vector_3_of_four_with_little_to_do_two_are_kept():
    maps = [replica(n, share=share) for n, share in enumerate((0.10, 0.05, 0.12, 0.08))]
    stand = view(maps, capacity=None, recent={})
    assert play(Hybrid(), stand, range(0, 120, 2)) == [(60, 2)]


def test_a_need_just_below_a_whole_number_is_no_reason_to_go():
    stand = foreseen(19.5, 3)
    assert play(Hybrid(), stand, range(0, 600, 10)) == []


# --- all of them


POLICIES: list[Callable[[], ScalingPolicy]] = [Static, Thresholds, Reactive, Forecast, Hybrid]

views = st.builds(
    lambda running, waiting, per_s, known, phases: foreseen(
        per_s,
        [
            replica(n, phase, min(running, 8) if phase != "starting" else 0, known=known)
            for n, phase in enumerate(phases)
        ],
        waiting=Waiting(count=waiting, seconds=3.0 * waiting),
    ),
    st.integers(0, 8),
    st.integers(0, 50),
    st.floats(0, 100),
    st.booleans(),
    st.lists(st.sampled_from(["starting", "ready", "isolated", "draining"]), max_size=6),
)


@pytest.mark.parametrize("make", POLICIES)
@given(seen=st.lists(views, min_size=1, max_size=8), every=st.floats(0.5, 100))
def test_policies_are_deterministic_and_never_scale_down_on_stale_metrics(
    make: Callable[[], ScalingPolicy], seen: list[ScalingView], every: float
):
    one, other = make(), make()
    for n, stand in enumerate(seen):
        scale = one.decide(stand, n * every)
        assert scale == other.decide(stand, n * every)
        assert scale.wanted >= 0
        assert scale.why
        stale = any(each.phase == "ready" and not each.known for each in stand.replicas)
        if stale and make in (Thresholds, Reactive, Hybrid):
            assert scale.wanted >= stand.active


@pytest.mark.parametrize("make", POLICIES)
def test_policies_do_not_change_what_they_see(make: Callable[[], ScalingPolicy]):
    stand = foreseen(20.0, [replica(0, running=8, share=0.5), replica(1, "starting")])
    before = msgspec.to_builtins([each.name for each in stand.replicas]), stand.replicas[0].ahead.frozen()  # type: ignore[union-attr]
    make().decide(stand, 0.0)
    assert before[1] == stand.replicas[0].ahead.frozen()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Hybrid, {"target": 0.0}),
        (Forecast, {"down_s": -1.0}),
        (Reactive, {"target_ongoing": 0.0}),
        (Static, {"replicas": -1}),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Callable[..., ScalingPolicy], options: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"scaling.policy_options: {next(iter(options))} is"):
        make(**options)


def test_reactive_goes_by_one_target():
    with pytest.raises(ConfigError, match=r"`target` .* and `target_ongoing` .* are both set"):
        Reactive(target=0.5, target_ongoing=3.0)


def test_they_are_registered():
    registered = set(registry.names("scaling policy"))
    if not registered:
        pytest.skip("this source is not what is installed")
    assert registered >= {"static", "thresholds", "reactive", "forecast", "hybrid"}


def test_scale_is_told_with_the_figures_behind_it():
    scale: Scale = Hybrid().decide(foreseen(20.0, 1), 0.0)
    assert {"need", "per_s", "per_replica_s", "floor", "overloaded", "backlog_s"} <= set(scale.figures)
