from __future__ import annotations

import pytest

from foreserve.services.prefixes import BLOCK_TOKENS, MOST_BLOCKS, of_bytes, of_hashes, of_tokens, wanted
from foreserve.settings import FunctionSettings, LLMSettings


def test_prompts_agree_in_as_many_blocks_as_they_begin_alike():
    prompt = [n * 7 % 4096 for n in range(5 * BLOCK_TOKENS)]
    other = [*prompt[: 3 * BLOCK_TOKENS], 1, *prompt[3 * BLOCK_TOKENS + 1 :]]
    one, two = of_tokens(prompt), of_tokens(other)
    assert one is not None
    assert two is not None
    assert one.blocks[:3] == two.blocks[:3]
    assert not set(one.blocks[3:]) & set(two.blocks[3:]), "a block tells all before it"
    assert (one.block_tokens, len(one.blocks)) == (BLOCK_TOKENS, 5)
    assert of_tokens(prompt[: BLOCK_TOKENS - 1]) is None
    assert len(of_tokens(prompt * 100).blocks) == MOST_BLOCKS  # type: ignore[union-attr]


def test_numbers_are_the_same_in_every_process_and_fit_any_recording():
    told = of_tokens([1] * BLOCK_TOKENS)
    assert told is not None
    assert told.blocks == (59234331907901941,)
    assert 59234331907901941 < 2**56
    text = of_bytes(memoryview(b"x" * 4 * BLOCK_TOKENS * 2))
    assert text is not None
    assert len(text.blocks) == 2
    assert text == of_bytes(b"x" * 4 * BLOCK_TOKENS * 2 + b"y")


def test_hashes_of_a_trace_are_told_as_they_are():
    assert of_hashes((), 512) is None
    told = of_hashes(range(1000), 512)
    assert told is not None
    assert told.blocks == tuple(range(2 * MOST_BLOCKS))
    assert told.block_tokens == 512


@pytest.mark.parametrize(
    ("placement", "replicas", "caching", "expected"),
    [
        ("anticipated", 2, True, True),
        ("prefix_affinity", 2, True, True),
        ("mine", 2, True, True),
        ("anticipated", 1, True, False),
        ("least_requests", 9, True, False),
        ("anticipated", 2, False, False),
    ],
)
def test_it_is_told_where_something_comes_of_it(placement: str, replicas: int, caching: bool, expected: bool):
    assert wanted(LLMSettings(model="m", prefix_caching=caching), placement, replicas) is expected


def test_a_kind_without_a_cache_of_its_own_settings_may_have_one():
    assert wanted(FunctionSettings(target="a:b"), "anticipated", 2)
