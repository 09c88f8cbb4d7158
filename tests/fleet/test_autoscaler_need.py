"""The rules of the specification, with its test vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import EngineLoad
from foreserve.fleet.autoscaler_need import (
    backlog,
    consolidated,
    need,
    overloaded,
    share_held,
    to_clear,
    whole,
)
from foreserve.scaling import Capacity, Waiting
from tests.fleet.views import replica, view


def test_vector_2_two_replicas_for_a_window_of_code():
    capacity = Capacity(per_s={"prompt": 3400.0, "response": 215.0, "total": 3500.0})
    amounts = {"prompt": 2.0e6, "response": 1.3e5, "total": 2.13e6}
    ratios = {name: amount / (600.0 * capacity.per_s[name]) for name, amount in amounts.items()}
    assert ratios == pytest.approx({"prompt": 0.980, "response": 1.008, "total": 1.014}, abs=5e-4)
    found = need({name: amount / 600.0 for name, amount in amounts.items()}, capacity)
    assert found is not None
    assert (found.measure, whole(found.replicas)) == ("total", 2)


def test_vector_3_two_of_four_are_enough():
    assert consolidated([0.10, 0.05, 0.12, 0.08], 0.3) == 2


@pytest.mark.parametrize(
    ("peaks", "enough"),
    [([0.1, 0.31], None), ([0.3], None), ([], None), ([0.0, 0.0], 1), ([0.15, 0.15], 1), ([0.29] * 4, 4)],
)
def test_only_where_none_is_fuller_are_fewer_enough(peaks: list[float], enough: int | None):
    assert consolidated(peaks, 0.3) == enough


def test_coarse_measures_count_only_where_there_is_no_other():
    capacity = Capacity(per_s={"requests": 1.0, "seconds": 4.0, "output_tokens": 100.0})
    found = need({"requests": 30.0, "seconds": 8.0, "output_tokens": 150.0}, capacity)
    assert found is not None
    assert (found.measure, found.replicas, found.each) == ("output_tokens", 1.5, 100.0)
    found = need({"requests": 3.0, "seconds": 16.0}, capacity)
    assert found is not None
    assert (found.measure, found.replicas) == ("seconds", 4.0)


def test_what_nobody_knows_is_no_need():
    assert need({"tokens": 5.0}, None) is None
    assert need({"tokens": 5.0}, Capacity(per_s={"requests": 1.0})) is None
    assert need({"tokens": 5.0}, Capacity(per_s={"tokens": 0.0})) is None


def test_sums_of_fractions_ask_for_no_replica_more():
    assert whole(0.1 + 0.2 - 0.3 + 3.0) == 3
    assert whole(3.0001) == 4
    assert whole(0.0) == 0


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e6), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.5, 1e4), min_size=1),
)
def test_the_count_is_the_least_that_holds_every_measure(per_s: dict[str, float], each: dict[str, float]):
    found = need(per_s, Capacity(per_s=each))
    count = 0 if found is None else whole(found.replicas)
    both = {name: per_s[name] / each[name] for name in per_s if name in each}
    assert all(ratio <= count + 1e-6 for ratio in both.values())
    assert count == 0 or max(both.values()) > count - 1 - 1e-6


def test_a_map_is_overloaded_when_it_is_full_for_more_than_a_tenth_of_the_steps():
    full, half = replica(share=1.0), replica(share=0.5)
    assert overloaded(full)
    assert not overloaded(half)
    assert not overloaded(replica(phase="starting"))


def test_how_full_one_is_goes_by_its_fullest_resource_and_is_not_known_of_a_silent_one():
    assert share_held(replica(share=0.5, running=2)) == pytest.approx(0.5, abs=0.01)
    assert share_held(replica(share=0.1, running=6)) == 0.75
    assert share_held(replica(running=1, load=EngineLoad(kv_fraction=0.4))) == 0.4
    assert share_held(replica(known=False)) is None


def test_the_backlog_is_in_seconds_of_a_replica():
    assert backlog(view(waiting=Waiting())) == 0.0
    assert backlog(view(waiting=Waiting(count=10, seconds=80.0))) == 10.0
    assert backlog(view(waiting=Waiting(count=10), capacity=Capacity(per_s={"requests": 0.5}))) == 20.0


def test_what_is_gone_before_a_start_asks_for_none():
    waiting = Waiting(count=10, seconds=8 * 20.0)  # 20 s of one replica; a start takes 30
    assert to_clear(view(1, waiting=waiting), 30.0, flow=0.0) == 0.0
    assert to_clear(view(1, waiting=waiting), 30.0, flow=0.9) == pytest.approx(0.9 + 17.0 / 30.0)


def test_those_that_start_count_as_there():
    waiting = Waiting(count=10, seconds=8 * 60.0)
    one, three = (
        view(1, waiting=waiting),
        view([replica(0), *(replica(n, "starting") for n in (1, 2))], waiting=waiting),
    )
    assert to_clear(one, 30.0, flow=1.0) == 3.0
    assert to_clear(three, 30.0, flow=1.0) == 0.0
