from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreserve.pipelines import log as logs
from foreserve.pipelines.channel import Channel
from foreserve.pipelines.log import Reader, TooMany
from foreserve.pipelines.text import Text


class Seen(Reader):
    """What a reader sees, told as it happens."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self.channel = channel
        self.items: list[object] = []
        self.gone: list[object] = []
        channel.attach(self)

    def news(self) -> None:
        self.started = True
        self.items += self.channel.items[self.cursor :]
        self.cursor = len(self.channel.items)

    def dropped(self, index: object) -> None:
        self.gone.append(index)

    def retracted(self) -> None:
        self.items.clear()
        self.gone.clear()


def test_counts_and_not_arrival_order_decide_completion():
    channel = Channel()
    channel.end(2)
    assert not channel.complete
    channel.put(1, "b")
    assert not channel.complete
    channel.put(0, "a")
    assert channel.complete
    assert channel.whole() == ["a", "b"]


def test_none_at_all_is_complete_at_once():
    channel = Channel()
    channel.end(0)
    assert channel.complete
    assert channel.whole() == []


def test_a_child_that_awaits_its_own_end_keeps_its_parent_incomplete():
    parent, first, second = Channel(), Channel(), Channel()
    parent.put(0, first)
    parent.put(1, second)
    parent.end(2)
    first.end(0)
    second.put(0, "x")
    assert parent.ended
    assert not parent.complete
    second.end(1)
    assert parent.complete
    assert parent.whole() == [[], ["x"]]


@given(count=st.integers(0, 12), dropped=st.sets(st.integers(0, 11)), ordered=st.booleans(), seed=st.integers(0, 10**6))
def test_messages_that_come_twice_or_in_another_order_change_nothing(
    count: int, dropped: set[int], ordered: bool, seed: int
):
    chance = random.Random(seed)
    messages: list[int | None] = [*range(count), None, *chance.choices([*range(count), None], k=6)] if count else [None]
    chance.shuffle(messages)
    channel = Channel(ordered=ordered)
    seen, told = Seen(channel), []
    channel.when_complete(lambda: told.append(len(seen.items)))
    for message in messages:
        if message is None:
            channel.end(count)
        elif message in dropped:
            channel.drop(message)
        else:
            channel.put(message, f"item {message}")
    kept = [f"item {i}" for i in range(count) if i not in dropped]
    assert channel.complete
    assert told == [len(kept)]
    assert channel.whole() == kept
    assert (seen.items if ordered else sorted(seen.items, key=lambda x: int(x.split()[1]))) == kept
    assert sorted(seen.gone) == [i for i in range(count) if i in dropped]
    assert channel.count == len(kept)


def test_pairs_of_numbers_are_in_their_order():
    channel = Channel()
    for index in [(1, 0), (0, 1), (1, 0), (0, 0)]:
        channel.put(index, index)
    channel.end(3)
    assert channel.whole() == [(0, 0), (0, 1), (1, 0)]


def test_what_is_taken_back_belongs_to_no_later_attempt():
    channel, child = Channel(), Text()
    seen = Seen(channel)
    channel.put(0, child)
    channel.retract()
    assert (seen.items, channel.attempt) == ([], 1)
    channel.put(0, "late", attempt=0)
    channel.put(0, "new", attempt=1)
    channel.end(1)
    child.close()
    assert channel.complete
    assert channel.whole() == ["new"]


def test_one_stream_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "MOST_ITEMS", 3)
    channel = Channel()
    for index in range(3):
        channel.put(index, index)
    with pytest.raises(TooMany, match="more than 3 items"):
        channel.put(3, 3)
