from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreserve.core import Prefix, Ramp, Work
from foreserve.dispatch.placement_prefixes import Prefixes


def work(name: str, blocks: tuple[int, ...], prompt: int = 0) -> Work:
    ramp = Ramp(resource="kv_tokens", base=prompt, steps=1, most=prompt + 1)
    prefix = Prefix(block_tokens=10, blocks=blocks)
    return Work(id=name, payload=None, cost={}, arrival=0.0, ramp=ramp, prefix=prefix)


def test_who_has_most_of_a_beginning_comes_first():
    known = Prefixes()
    assert known.hits(None) == {}
    assert known.sent(work("a", (1, 2, 3)), "x") == 0
    assert known.sent(work("b", (1, 9)), "y") == 0
    assert dict(known.hits(Prefix(block_tokens=10, blocks=(1, 2, 7)))) == {"x": 20, "y": 10}
    assert [*known.hits(Prefix(block_tokens=10, blocks=(1, 9, 8)))] == ["y", "x"]
    assert known.sent(work("c", (1, 9, 8)), "y") == 20
    assert known.hits(Prefix(block_tokens=10, blocks=(4,))) == {}


def test_a_cache_forgets_what_was_used_longest_ago_and_the_ends_of_it_first():
    known = Prefixes(cache_tokens=60)
    known.sent(work("a", (1, 2, 3)), "x")
    known.sent(work("b", (4, 5)), "x")
    known.sent(work("c", (1, 6)), "x")  # 1 is used again: 3, then 2 would go
    assert known.hits(work("", (1, 2, 3)).prefix) == {"x": 30}
    known.sent(work("d", (7,)), "x")
    assert known.hits(work("", (1, 2, 3)).prefix) == {"x": 20}
    known.sent(work("e", (8,)), "x")
    assert known.hits(work("", (1, 2, 3)).prefix) == {"x": 10}
    assert known.hits(work("", (4, 5)).prefix) == {"x": 20}
    assert len(known) == 6


def test_what_is_computed_beside_blocks_takes_room_too():
    known = Prefixes(cache_tokens=60)
    known.sent(work("a", (1, 2)), "x")
    known.sent(work("b", (3,), prompt=50), "x")
    assert known.hits(work("", (1, 2)).prefix) == {"x": 10}
    assert known.sent(work("c", (5,)), "x", 1000.0) == 0
    assert known.hits(work("", (3,)).prefix) == {"x": 10}


def test_what_adds_nothing_to_a_cache_is_not_remembered():
    known = Prefixes()
    for number in range(100):
        known.sent(work(f"w{number}", (1, 2), prompt=20), "x")
    assert [*known._caches["x"].parts] == [2, 1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 6)), max_size=60))
def test_it_stays_within_its_bounds_and_never_says_more_than_was_sent(calls: list[tuple[int, int, int]]):
    known = Prefixes(cache_tokens=80, most_blocks=12)
    sent: dict[str, set[int]] = {}
    for number, (replica, first, length) in enumerate(calls):
        name, blocks = f"r{replica}", tuple(100 * first + n for n in range(length))
        hit = known.sent(work(f"w{number}", blocks), name)
        had = sum(block in sent.get(name, ()) for block in blocks)
        assert hit <= 10 * had
        sent.setdefault(name, set()).update(blocks)
        assert len(known) <= 12
        for where, tokens in known.hits(work("", blocks).prefix).items():
            assert tokens <= 10 * sum(block in sent[where] for block in blocks)
    assert sum(map(len, known._where.values())) == len(known)
