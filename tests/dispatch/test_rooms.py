from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from foreserve.core import Cost, Work
from foreserve.dispatch.placement import LeastRequests
from foreserve.dispatch.rooms import Rooms
from foreserve.ports import Room
from foreserve.simulation.checks import reachable


class Counting:
    """A replica that counts how often it is looked at."""

    def __init__(self, name: str, slots: int = 4) -> None:
        self.name = name
        self.slots = slots
        self.running = 0
        self.looked_at = 0
        self.leaves = False

    def capacity(self) -> Cost:
        return {"slots": float(self.slots)}

    def room(self) -> Room | None:
        self.looked_at += 1
        if self.leaves or self.running == self.slots:
            return None
        free = {"slots": float(self.slots - self.running)}
        return Room(replica=self.name, free=free, capacity={"slots": float(self.slots)}, running=self.running)

    def run(self, works: Sequence[Work], plan: Any) -> None:
        self.running += len(works)

    def abort(self, ids: Sequence[str]) -> None:
        raise AssertionError("nothing is stopped here")


WORK = Work(id="w", payload=None, cost={"slots": 1.0}, arrival=0.0)


def fleet(count: int, *, ranked: bool = True) -> tuple[Rooms, list[Counting]]:
    rooms, replicas = Rooms(LeastRequests().rank if ranked else None), [Counting(f"r{n:03}") for n in range(count)]
    for replica in replicas:
        rooms.attach(replica)
    return rooms, replicas


def start(rooms: Rooms, replica: Counting, works: int = 1) -> None:
    replica.running += works
    rooms.changed(replica.name)


def test_they_stand_in_the_order_of_the_placement_that_ranks_them():
    rooms, (a, b, c) = fleet(3)
    start(rooms, a, 2)
    start(rooms, b, 1)
    assert [room.replica for room in rooms] == [c.name, b.name, a.name]
    start(rooms, c, 4)
    assert [room.replica for room in rooms] == [b.name, a.name]
    a.running = 0
    rooms.changed(a.name)
    assert [room.replica for room in rooms] == [a.name, b.name]
    shown = rooms.show()
    assert shown[0].replica == a.name
    assert [room.replica for room in shown[1:]] == [b.name]
    assert (rooms.slots, rooms.free_slots) == (12.0, 7.0)


def test_without_a_rank_they_stand_as_they_came():
    rooms, (a, b, _) = fleet(3, ranked=False)
    start(rooms, a, 4)
    a.running = 1
    rooms.changed(a.name)
    start(rooms, b, 3)
    assert [room.replica for room in rooms] == ["r000", "r001", "r002"]


def test_who_leaves_unseen_is_found_out_and_who_is_gone_counts_no_more():
    rooms, (a, b) = fleet(2)
    assert len(rooms.show()) == 2
    a.leaves = True
    assert [room.replica for room in rooms] == [b.name]
    assert rooms.free_slots == 4.0
    rooms.detach(b.name)
    rooms.detach("unknown")
    rooms.changed("unknown")
    assert not rooms
    assert (rooms.slots, rooms.free_slots) == (4.0, 0.0)


def test_a_replica_that_becomes_ready_under_a_name_that_is_there_takes_its_place():
    rooms, (a,) = fleet(1)
    start(rooms, a, 3)
    assert len(rooms.show()) == 1
    rooms.attach(Counting(a.name, slots=2))
    assert (rooms.slots, rooms.free_slots, len(rooms.show())) == (2.0, 2.0, 1)


def test_the_first_that_takes_it_of_those_that_may():
    rooms, (a, b, c) = fleet(3)
    for replica, running in ((a, 2), (b, 1), (c, 3)):
        start(rooms, replica, running)
    three = [Work(id=str(n), payload=None, cost={"slots": 1.0}, arrival=0.0) for n in range(3)]
    assert (found := rooms.first([WORK])) is not None
    assert found.replica == b.name
    assert (found := rooms.first([WORK], (a.name, c.name))) is not None
    assert found.replica == a.name
    assert rooms.first(three, (a.name, c.name)) is None


def test_a_look_costs_the_same_however_many_there_are():
    looks = []
    for count in (4, 400):
        rooms, replicas = fleet(count)
        assert rooms
        before = sum(replica.looked_at for replica in replicas)
        for _ in range(50):
            room = rooms.first([WORK])
            assert room is not None
            start(rooms, next(replica for replica in replicas if replica.name == room.replica))
            replicas[0].running = 0
            rooms.changed(replicas[0].name)
            assert rooms.free_slots > 0
        looks.append(sum(replica.looked_at for replica in replicas) - before)
    assert looks[1] <= looks[0]


def test_what_policies_are_shown_is_the_same_and_leads_to_no_replica():
    rooms = Rooms()
    one = Counting("r0", 2)
    assert not rooms.show()
    rooms.attach(one)
    shown = rooms.show()
    assert shown
    assert len(shown) == 1
    assert list(shown) == list(rooms) == [shown[0]]
    assert list(reachable(rooms, (Counting,))) == [one]
    assert not list(reachable(rooms.show(), (Counting,)))
    assert not list(reachable(shown, (Counting,)))


def test_what_policies_are_shown_is_a_sequence_like_another():
    rooms, _ = fleet(5)
    there = list(rooms)
    shown = rooms.show()
    assert shown[1] == there[1]
    assert shown == there
    assert there == shown
    assert shown == tuple(there)
    assert shown != there[:4]
    assert rooms.show() != 5
    assert shown + there == there + shown == [*there, *there]
    assert shown[-1] == there[-1]
    assert shown[1:4:2] == there[1:4:2]
    assert there[2] in shown
    assert shown.index(there[2]) == 2
    assert list(reversed(shown)) == there[::-1]
    with pytest.raises(IndexError):
        shown[5]
    with pytest.raises(TypeError):
        hash(shown)


def test_each_is_looked_up_once_in_a_pick_and_only_when_it_is_asked_for():
    rooms, replicas = fleet(100)
    assert rooms
    before = sum(replica.looked_at for replica in replicas)
    shown = rooms.show()
    assert any(room.takes([WORK]) for room in shown)
    assert shown[0] in shown
    assert sum(replica.looked_at for replica in replicas) - before == 1
    for _ in range(3):
        assert len([shown[at].replica for at in range(len(shown))]) == 100
        assert list(shown) == shown
    assert sum(replica.looked_at for replica in replicas) - before == 100


def test_what_was_shown_stays_as_it_was_and_nothing_more_is_seen_of_it_afterwards():
    rooms, replicas = fleet(3)
    whole = rooms.show()
    kept = list(whole)
    part = rooms.show()
    assert part[0:1] == kept[0:1]
    for replica in replicas:
        start(rooms, replica, 4)
    rooms.hide()
    assert whole == kept
    assert part == kept
    unseen = rooms.show()
    rooms.hide()
    with pytest.raises(RuntimeError, match="during the pick alone"):
        list(unseen)


def test_a_short_list_has_the_first_that_take_it_then_the_near_ones_then_two_that_are_drawn():
    rooms, replicas = fleet(40)
    for number, replica in enumerate(replicas):
        start(rooms, replica, number // 16)  # 16 run none, 16 run one, 8 run two
    listed = [room.replica for room in rooms.shortlist([WORK], (), 3, ("r039", "nobody"))]
    assert listed[:4] == ["r000", "r001", "r002", "r039"]
    assert 4 <= len(listed) <= 6
    assert listed == [room.replica for room in rooms.shortlist([WORK], (), 3, ("r039",))], "the same for one request"
    drawn = set()
    for number in range(200):
        some = rooms.shortlist([Work(id=f"q{number}", payload=None, cost={}, arrival=0.0)], (), 3, ())
        drawn |= {room.replica for room in some[3:]}
    assert len(drawn) > 30, "all are looked at in time"


def test_a_short_list_has_only_what_may_and_can_take_it():
    rooms, (a, b, c) = fleet(3)
    start(rooms, b, 3)
    two = [Work(id=str(n), payload=None, cost={"slots": 1.0}, arrival=0.0) for n in range(2)]
    assert [room.replica for room in rooms.shortlist(two, (), 2, ("r001",))] == [a.name, c.name]
    assert [room.replica for room in rooms.shortlist(two, (b.name, c.name), 2, ())] == [c.name]
    assert rooms.shortlist(two, (b.name,), 2, ()) == []
    a.leaves = True
    assert [room.replica for room in rooms.shortlist(two, (), 1, (a.name,))] == [c.name]


def test_where_the_first_have_no_room_for_it_the_list_goes_on_until_one_has():
    rooms, replicas = fleet(50)
    for replica in replicas[:49]:
        start(rooms, replica, 2)
    start(rooms, replicas[49], 1)
    three = [Work(id=str(n), payload=None, cost={"slots": 1.0}, arrival=0.0) for n in range(3)]
    for replica in replicas[:49]:
        replica.slots = 4
    assert [room.replica for room in rooms.shortlist(three, (), 4, ())] == ["r049"]


def test_a_short_list_of_many_costs_no_more_than_one_of_few():
    looks = []
    for count in (20, 400):
        rooms, replicas = fleet(count)
        assert rooms
        before = sum(replica.looked_at for replica in replicas)
        for number in range(50):
            rooms.shortlist([Work(id=f"q{number}", payload=None, cost={}, arrival=0.0)], (), 4, ())
        looks.append(sum(replica.looked_at for replica in replicas) - before)
    assert looks[1] <= looks[0] + 50
