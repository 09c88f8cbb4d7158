from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from foreserve.core import Work
from foreserve.dispatch.placement import LeastRequests, LeastTokens, RoundRobin
from foreserve.ports import Placement, Room, ranked
from foreserve.simulation.clock import run
from tests.dispatch.harness import House


def room(name: str, running: int, slots: int = 4) -> Room:
    return Room(replica=name, free={"slots": slots - running}, capacity={"slots": slots}, running=running)


def test_least_requests_goes_by_share_then_by_name():
    rooms = [room("c", 2), room("b", 1), room("a", 1), room("d", 1, slots=2)]
    assert LeastRequests().place([], rooms, 0) == "a"
    assert LeastRequests().place([], [room("x", 3, slots=16), room("y", 1, slots=4)], 0) == "x"


def test_round_robin_takes_turns_and_survives_replicas_that_come_and_go():
    policy = RoundRobin()
    rooms = [room(name, 0) for name in "bca"]
    assert [policy.place([], rooms, 0) for _ in range(4)] == ["a", "b", "c", "a"]
    assert policy.place([], [room("c", 0)], 0) == "c"
    assert policy.place([], rooms, 0) == "a"


class ByPlace:
    """Of a user's own: the last by name. Its `rank` is a helper that means something else."""

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        return max(self.rank(room.replica) for room in rooms)

    def rank(self, name: Any) -> Any:
        assert isinstance(name, str)
        return name


class PlaceOfItsOwn(LeastRequests):
    """Inherits a rank, and does not go by it."""

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        return max(room.replica for room in rooms)


class HelperOfItsOwn(LeastRequests):
    """Overrides the rank as well, for its own use."""

    place, rank = ByPlace.place, ByPlace.rank  # type: ignore[assignment]


class RankOfItsOwn(LeastRequests):
    """Ranks the other way round."""

    def rank(self, room: Room) -> Any:
        return tuple(-ord(letter) for letter in room.replica)


class Both:
    """Ranks, and says so."""

    by_rank: ClassVar[bool] = True

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        raise AssertionError("it is asked by rank")

    def rank(self, room: Room) -> Any:
        return tuple(-ord(letter) for letter in room.replica)


class NoLonger(Both):
    """Does not rank."""

    by_rank: ClassVar[bool] = False

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        return max(room.replica for room in rooms)


class SaidAnew(PlaceOfItsOwn):
    """Ranks again, below a class that does not."""

    by_rank: ClassVar[bool] = True

    def rank(self, room: Room) -> Any:
        return tuple(-ord(letter) for letter in room.replica)


@pytest.mark.parametrize(
    ("placement", "by_rank"),
    [
        (ByPlace(), False),
        (PlaceOfItsOwn(), False),
        (HelperOfItsOwn(), False),
        (NoLonger(), False),
        (RankOfItsOwn(), True),
        (Both(), True),
        (SaidAnew(), True),
    ],
)
def test_a_placement_of_a_users_own_is_asked_by_what_is_its_own(placement: Placement, by_rank: bool):
    assert (ranked(placement) is placement) is by_rank

    async def main() -> None:
        house = House(placement=placement)
        replicas = [house.replica(name, 2) for name in "abc"]
        streams = [house.submit(f"r{n}") for n in range(3)]
        for stream in streams:
            await stream.settled()
        assert [len(replica.batches) for replica in replicas] == [0, 1, 2]

    run(main())


def test_of_the_built_ins_the_default_ranks():
    assert ranked(LeastRequests()) is not None
    assert ranked(RoundRobin()) is None


def test_least_tokens_goes_by_what_is_in_flight_and_by_the_cache_where_that_is_told():
    few = Room(replica="few", free={}, capacity={"kv_tokens": 1000.0}, running=9, tokens=300)
    many = Room(replica="many", free={}, capacity={}, holds={"kv_tokens": 4000.0}, running=9, tokens=800)
    assert LeastTokens().place([], [few, many], 0.0) == "many"
    untold = [Room(replica=name, free={}, capacity={}, running=n, tokens=5) for n, name in enumerate("ba")]
    assert LeastTokens().place([], untold, 0.0) == "b"
    assert ranked(LeastTokens()) is not None
