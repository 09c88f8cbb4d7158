from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Work
from foreserve.dispatch.placement_affinity import Affinity
from foreserve.ports import Room


def room(name: str, running: int = 0) -> Room:
    return Room(replica=name, free={"slots": 8.0 - running}, capacity={"slots": 8.0}, running=running)


def work(key: str | None) -> Work:
    return Work(id="q", payload=None, cost={"slots": 1.0}, arrival=0.0, affinity=key)


def place(key: str | None, rooms: list[Room]) -> str:
    return Affinity().place([work(key)], rooms, 0.0)


@given(st.text(max_size=8), st.integers(2, 9))
def test_a_key_stays_where_it_is_whoever_else_comes_or_goes(key: str, count: int):
    rooms = [room(f"r{n}") for n in range(count)]
    home = place(key, rooms)
    assert place(key, rooms[::-1]) == home
    for gone in rooms:
        left = [each for each in rooms if each is not gone]
        assert place(key, left) == home or gone.replica == home


def test_keys_are_spread():
    rooms = [room(f"r{n}") for n in range(4)]
    homes = [place(f"key {n}", rooms) for n in range(400)]
    assert all(70 <= homes.count(each.replica) <= 130 for each in rooms)


def test_balance_comes_before_affinity():
    home = place("k", [room("a"), room("b")])
    other = "b" if home == "a" else "a"
    assert place("k", [room(home, 2), room(other, 0)]) == home
    assert place("k", [room(home, 3), room(other, 0)]) == other
    assert place(None, [room(home, 1), room(other, 0)]) == other
