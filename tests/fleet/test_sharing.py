from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.errors import ConfigError
from foreserve.fleet.sharing import Claim, Granted, Shares, share


def claim(service: str, wanted: int, need: float, **words: Any) -> Claim:
    return Claim(service=service, wanted=wanted, need=need, **words)


def replicas(*claims: Claim, most: int | None = None, memory_gb: float | None = None) -> dict[str, int]:
    return {name: granted.replicas for name, granted in share(claims, most, memory_gb).items()}


def test_without_a_bound_each_gets_what_it_wants():
    assert replicas(claim("a", 3, 2.5), claim("b", 5, 5.0)) == {"a": 3, "b": 5}


def test_minima_come_first():
    assert replicas(claim("a", 4, 4.0), claim("b", 1, 0.0, least=1), most=3) == {"a": 2, "b": 1}


def test_each_further_one_goes_where_it_is_needed_most():
    assert replicas(claim("a", 3, 2.2), claim("b", 2, 1.9), most=4) == {"a": 2, "b": 2}
    assert replicas(claim("a", 3, 2.9), claim("b", 2, 1.2), most=4) == {"a": 3, "b": 1}


def test_memory_bounds_too_and_a_small_one_fits_where_a_large_one_does_not():
    claims = claim("a", 2, 2.0, memory_gb=10.0), claim("b", 3, 1.5, memory_gb=2.0)
    assert replicas(*claims, memory_gb=15.0) == {"a": 1, "b": 2}


def test_one_with_nothing_to_do_gives_its_replica_to_one_that_has_work():
    idle, waits = claim("a", 1, 0.0, active=1), claim("b", 1, 0.05, waits_s=0.1)
    granted = share([idle, waits], 1)
    assert granted["a"] == Granted(replicas=0, share=0, why="the machine is shared: b 1 need theirs more")
    assert granted["b"] == Granted(replicas=0, share=1, why="1 as soon as a has given up what it holds")


def test_it_gets_it_when_the_other_has_really_gone():
    waits = claim("b", 1, 0.05, waits_s=3.0)
    assert replicas(claim("a", 0, 0.0, leaving=1), waits, most=1) == {"a": 0, "b": 0}
    assert replicas(claim("a", 0, 0.0), waits, most=1) == {"a": 0, "b": 1}


def test_an_isolated_one_is_taken_back_without_more_room():
    assert replicas(claim("a", 2, 2.0, active=1, isolated=1), most=2) == {"a": 2}


@pytest.mark.parametrize(("need", "moved"), [(0.3, False), (0.5, False), (0.85, True)])
def test_one_moves_only_where_the_difference_is_worth_a_start(need: float, moved: bool):
    """Both have work. The second one of `a` is half needed."""
    shares = share([claim("a", 2, 1.5, active=2), claim("b", 2, 1.0 + need, active=1)], 3)
    assert shares["a"].share == (1 if moved else 2)


def test_one_that_was_just_given_stays_for_a_while():
    busy = claim("a", 1, 0.2, active=1, given_s=5.0, start_s=3.0)
    waits = claim("b", 1, 1.0, waits_s=5.0)
    assert share([busy, waits], 1)["b"].share == 0
    assert share([claim("a", 1, 0.2, active=1, given_s=12.1, start_s=3.0), waits], 1)["b"].share == 1


def test_of_two_that_wait_the_one_that_has_waited_longer_is_first():
    assert replicas(claim("a", 1, 0.9, waits_s=1.0), claim("b", 1, 0.1, waits_s=20.0), most=1) == {"a": 0, "b": 1}


def test_what_is_wanted_and_not_needed_is_given_where_there_is_room():
    assert replicas(claim("a", 3, 0.0), claim("b", 1, 1.0), most=4) == {"a": 3, "b": 1}


claims = st.lists(
    st.builds(
        Claim,
        service=st.sampled_from("abcdef"),
        wanted=st.integers(0, 6),
        need=st.floats(0, 6),
        least=st.integers(0, 1),
        active=st.integers(0, 4),
        isolated=st.integers(0, 2),
        leaving=st.integers(0, 2),
        waits_s=st.none() | st.floats(0, 60),
        memory_gb=st.floats(0, 8),
        given_s=st.floats(0, 100),
        start_s=st.floats(0, 30),
    ),
    unique_by=lambda claim: claim.service,
    min_size=1,
)


@given(claims, st.integers(1, 12), st.floats(1, 40), st.randoms())
def test_never_over_the_bound_and_deterministic(every: list[Claim], most: int, memory_gb: float, order: Any):
    granted = share(every, most, memory_gb)
    shuffled = [*every]
    order.shuffle(shuffled)
    assert share(shuffled, most, memory_gb) == granted
    by_name = {each.service: each for each in every}
    assert sum(each.share for each in granted.values()) <= most
    assert sum(each.share * by_name[name].memory_gb for name, each in granted.items()) <= memory_gb + 1e-6
    held = {name: each.active + each.isolated + each.leaving for name, each in by_name.items()}
    added = {
        name: max(0, each.replicas - by_name[name].active - by_name[name].isolated) for name, each in granted.items()
    }
    if any(added.values()):
        assert sum(held.values()) + sum(added.values()) <= most
        room = sum((held[name] + added[name]) * each.memory_gb for name, each in by_name.items())
        assert room <= memory_gb + 1e-6
    for name, each in granted.items():
        assert 0 <= each.replicas <= each.share <= max(by_name[name].wanted, by_name[name].least)
        assert each.why or each.replicas >= by_name[name].wanted


@given(claims, st.integers(0, 6))
def test_the_least_is_respected_where_all_leasts_fit(every: list[Claim], more: int):
    most = max(1, sum(each.least for each in every) + more)
    granted = share(every, most)
    assert all(granted[each.service].share >= each.least for each in every)


@given(claims, st.integers(1, 12))
def test_no_room_is_left_while_somebody_wants_it(every: list[Claim], most: int):
    granted = share(every, most)
    given_out = sum(each.share for each in granted.values())
    assert given_out == min(most, sum(max(each.wanted, each.least) for each in every))


@given(claims, st.integers(1, 8))
def test_what_was_granted_stands_when_nothing_has_changed(every: list[Claim], most: int):
    """Once the fleet has followed, the same wants move nothing: two services never take turns for nothing."""
    settled = [Claim(service=each.service, wanted=each.wanted, need=each.need, least=each.least) for each in every]
    shares = share(settled, most)
    stand = [msgspec.structs.replace(each, active=shares[each.service].share) for each in settled]
    assert replicas(*stand, most=most) == {name: each.share for name, each in shares.items()}


class Service:
    """Holds what it is granted at once, but for what leaves."""

    def __init__(self, name: str, shares: Shares, wanted: int, need: float, active: int = 0) -> None:
        self.name, self.wanted, self.need = name, wanted, need
        self.active, self.leaving, self.pokes = active, 0, 0
        self._shares = shares
        shares.enter(name, lambda: (self.active, 0, self.leaving), self.poke)

    def poke(self) -> None:
        self.pokes += 1

    def ask(self, **words: Any) -> Granted:
        granted = self._shares.ask(
            claim(self.name, self.wanted, self.need, active=self.active, leaving=self.leaving, **words)
        )
        self.leaving += max(0, self.active - granted.replicas)
        self.active = granted.replicas
        return granted


def test_a_replica_moves_from_one_service_to_another_and_both_hear_of_it():
    shares = Shares(replicas=1)
    a, b = Service("a", shares, 1, 1.0, active=1), Service("b", shares, 0, 0.0)
    assert (a.ask().replicas, b.ask().replicas) == (1, 0)
    a.need, b.wanted, b.need = 0.0, 1, 0.3
    a.ask()
    assert b.ask(waits_s=0.0).replicas == 0
    assert a.pokes == 1
    assert a.ask().replicas == 0
    assert b.ask(waits_s=2.0).replicas == 0, "it still leaves"
    a.leaving = 0
    assert b.ask(waits_s=4.0).replicas == 1


def test_who_has_not_asked_yet_keeps_what_it_holds():
    shares = Shares(replicas=2)
    _, b = Service("a", shares, 2, 2.0, active=2), Service("b", shares, 1, 1.0)
    assert b.ask(waits_s=9.0).share == 0


def test_a_fixed_number_of_replicas_takes_its_room_and_is_never_asked_for_it():
    shares = Shares(replicas=3)
    shares.hold("fixed", 2)
    a = Service("a", shares, 3, 3.0)
    assert a.ask(waits_s=900.0).replicas == 1


def test_leasts_that_do_not_fit_are_told_before_anything_starts():
    shares = Shares(replicas=2, memory_gb=4.0)
    shares.check({"a": 1, "b": 1})
    with pytest.raises(
        ConfigError, match=r"machine.replicas is 2, and the services' least numbers come to 3 \(a 1, b 2\)"
    ):
        shares.check({"a": 1, "b": 2})
    shares.memory_gb = {"a": 3.0, "b": 1.5}
    with pytest.raises(ConfigError, match=r"machine.memory_gb is 4.* take about 4.5 \(a replica of each: a 3 GiB"):
        shares.check({"a": 1, "b": 1})


def test_a_replica_that_there_is_never_room_for_beside_the_leasts_is_told():
    shares = Shares(replicas=3, memory_gb=4.0)
    shares.memory_gb = {"a": 3.0, "b": 1.5}
    with pytest.raises(
        ConfigError, match=r"machine.memory_gb is 4, .* leave no room for one of b, which takes 1.5 GiB"
    ):
        shares.check({"a": 1, "b": 0})
    shares.check({"a": 0, "b": 0})
    shares.check({"a": 1, "c": 0})


def test_memory_is_heeded_once_it_is_known():
    shares = Shares(memory_gb=4.0)
    shares.memory_gb = {"a": 3.0}
    assert Service("a", shares, 2, 2.0).ask().replicas == 1
