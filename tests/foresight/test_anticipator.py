from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Ramp
from foreserve.foresight.anticipator import LEAST_EXTENSION, Anticipator


def ramp(base: int, steps: int, most: int | None = None) -> Ramp:
    return Ramp(resource="kv_tokens", base=base, steps=steps, most=base + steps if most is None else most)


class Naive:
    """The same map, each ramp by itself: id to (base, began, end)."""

    def __init__(self) -> None:
        self.now = 0
        self.held: dict[str, tuple[int, int, int]] = {}

    def at(self, step: int) -> int:
        return sum(base + step - began for base, began, end in self.held.values() if began <= step < end)

    def window(self, steps: int, ramps: list[Ramp] | None = None) -> list[int]:
        more = [[each.base + i if i < each.steps else 0 for i in range(steps)] for each in ramps or ()]
        return [self.at(self.now + i) + sum(each[i] for each in more) for i in range(steps)]

    def until(self, level: int) -> int:
        """Steps until no more than this is held, or until the last has ended."""
        last = max((end for _, _, end in self.held.values()), default=self.now) - self.now
        return next((i for i in range(last + 1) if self.at(self.now + i) <= level), last)

    def takes(self, ramps: list[Ramp], capacity: int) -> bool:
        for i in range(max(each.steps for each in ramps)):
            more = sum(each.base + i for each in ramps if i < each.steps)
            if self.at(self.now + i) + more > capacity:
                return False
        return True


def test_the_vector_of_the_specification():
    ahead = Anticipator()
    ahead.add("long", ramp(1000, 512))
    ahead.add("short", ramp(200, 50))
    window = ahead.window(60)
    assert (window[0], window[49], window[50]) == (1200, 1298, 1050)
    assert max(window) == window[49] == ahead.peak(60)
    assert ahead.peak(50) == 1298
    assert ahead.peak(49) == 1296
    assert ahead.peak(1) == ahead.held_now == 1200


@pytest.mark.parametrize("seed", range(300))
def test_differences_are_the_naive_sum(seed: int):
    """Random adds, ends, extensions and steps, as in the specification; predictions are never outlived here."""
    draw = random.Random(seed)
    ahead, naive = Anticipator(), Naive()
    for number in range(200):
        choice = draw.random()
        if choice < 0.35:
            new = ramp(draw.randint(1, 500), draw.randint(1, 600))
            ahead.add(str(number), new)
            naive.held[str(number)] = (new.base, naive.now, naive.now + new.steps)
        elif choice < 0.5 and naive.held:
            gone = draw.choice(list(naive.held))
            ahead.remove(gone)
            del naive.held[gone]
        elif choice < 0.7 and naive.held:
            longer, more = draw.choice(list(naive.held)), draw.randint(1, 60)
            ahead.extend(longer, more)
            base, began, end = naive.held[longer]
            naive.held[longer] = (base, began, end + more)
        else:
            steps = draw.randint(0, 40)
            if draw.random() < 0.1:
                steps *= 20
            due = [name for name, (_, _, end) in naive.held.items() if end <= naive.now + steps]
            for name in due:
                ahead.remove(name)
                del naive.held[name]
            ahead.advance(steps)
            naive.now += steps
        if number % 25 == 0:
            assert ahead.window(100) == naive.window(100)
            limit = draw.randint(1, 900)
            assert ahead.peak(limit) == max(naive.window(limit))
            level = draw.randint(0, max(naive.window(1)[0], 1) * 2)
            assert ahead.above(level, limit) == sum(one > level for one in naive.window(limit))
            some = [ramp(draw.randint(1, 500), draw.randint(1, 900)) for _ in range(draw.choice((1, 3)))]
            assert ahead.peak(limit, some) == max(naive.window(limit, some))
            assert ahead.until(100, level + 100) == naive.until(level)
            for count in (1, 4):
                asked = [ramp(draw.randint(1, 500), draw.randint(1, 200)) for _ in range(count)]
                capacity = max(naive.window(200)) + draw.randint(0, 600) * count
                assert ahead.takes(asked, capacity) == naive.takes(asked, capacity)
    for name in list(naive.held):
        ahead.remove(name)
    assert ahead.window(1300) == [0] * 1300
    assert not ahead._changes, "an ended ramp leaves nothing behind"
    assert not ahead._ends
    assert not ahead._order


def test_the_last_free_token_is_given_and_not_one_more():
    ahead = Anticipator()
    ahead.add("a", ramp(50, 10))  # 50 to 59
    assert ahead.takes([ramp(20, 5)], 78)  # highest at the fifth step: 54 + 24
    assert not ahead.takes([ramp(20, 5)], 77)
    assert ahead.takes([ramp(20, 30)], 88)  # 59 + 29 at the tenth step, 49 at the thirtieth
    assert not ahead.takes([ramp(20, 30)], 87)


def test_one_that_outlives_its_prediction_is_extended_until_its_most_and_never_counted_as_nothing():
    ahead = Anticipator()
    ahead.add("a", ramp(100, 200, most=500))
    seen = []
    for _ in range(700):
        ahead.advance(1)
        seen.append(ahead.held_now)
        assert ahead.peak(1000) >= ahead.held_now > 0
    assert seen[:400] == list(range(101, 501)), "a fifth of 200 more, again and again"
    assert set(seen[400:]) == {500}, "it cannot hold more than its most"
    ahead.remove("a")
    assert ahead.window(200) == [0] * 200
    assert not ahead._changes


def test_extensions_are_a_fifth_of_the_prediction_but_not_too_short():
    ahead = Anticipator()
    ahead.add("long", ramp(0, 200, most=1000))
    ahead.add("short", ramp(0, 10, most=1000))
    ahead.advance(10)
    assert ahead.window(LEAST_EXTENSION + 1)[LEAST_EXTENSION - 1 :] == [2 * 25, 26]
    ahead.remove("short")
    ahead.advance(190)
    assert ahead.window(41)[39:] == [239, 0]


def test_many_steps_at_once_are_the_same_as_one_by_one():
    one, many = Anticipator(), Anticipator()
    for ahead in (one, many):
        for number in range(5):
            ahead.add(str(number), ramp(10 * number, 7 * number + 3, most=150 + number))
    for _ in range(120):
        one.advance(1)
    many.advance(120)
    assert (
        one.held_now
        == many.held_now
        == sum(10 * number + 120 for number in range(3))
        + sum(min(10 * number + 120, 150 + number) for number in (3, 4))
    )


def test_an_id_is_on_the_map_once():
    ahead = Anticipator()
    ahead.add("a", ramp(1, 1))
    with pytest.raises(ValueError, match="already"):
        ahead.add("a", ramp(1, 1))
    ahead.remove("nobody")
    assert len(ahead) == 1
    assert "a" in ahead


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60), st.integers(1, 80)), max_size=8), st.data())
def test_a_map_that_is_restored_takes_what_the_other_took(ramps: list[tuple[int, int, int]], data: st.DataObject):
    one = Anticipator()
    for number, (base, steps, most) in enumerate(ramps):
        one.add(f"q{number}", Ramp(resource="kv", base=base, steps=steps, most=base + most))
        one.advance(data.draw(st.integers(0, 30)))
        if data.draw(st.booleans()):
            one.remove(f"q{data.draw(st.integers(0, number))}")
    other = Anticipator.restored(one.now, one.held())
    assert len(other) == len(one)
    assert other.window(100) == one.window(100)
    asked = [Ramp(resource="kv", base=3, steps=n, most=200) for n in (1, 20, 90)]
    for capacity in range(0, 300, 7):
        for some in (asked[:1], asked[1:2], asked):
            assert other.takes(some, capacity) == one.takes(some, capacity)


def test_what_has_not_begun_after_all_begins_anew():
    ahead = Anticipator()
    ahead.add("a", ramp(100, 50))
    ahead.begin_anew("a", ramp(100, 50))
    ahead.advance(40)
    assert ahead.held_now == 140
    ahead.begin_anew("a", ramp(100, 50))
    assert ahead.window(51) == [*range(100, 150), 0]
    ahead.begin_anew("nobody", ramp(1, 1))
    assert len(ahead) == 1
