import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreserve.elastic.merging import Merged, merge


def rows(batch: int, length: int, seed: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, length, width, generator=made, dtype=torch.double),
        torch.randn(batch, length, width, generator=made, dtype=torch.double),
    )


@given(st.integers(1, 4), st.integers(1, 23), st.integers(0, 3), st.integers(0, 12), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_sums_stay_and_the_first_tokens_are_not_touched(
    batch: int, length: int, fixed: int, most: int, seed: int
) -> None:
    fixed = min(fixed, length)
    tokens, keys = rows(batch, length, seed)
    sizes = torch.randint(1, 4, (batch, length), generator=torch.Generator().manual_seed(seed)).float()
    out, new, counts = merge(Merged(tokens, sizes, None), keys, fixed, most)
    assert counts is None
    assert out.shape[1] == new.shape[1] == length - min(most, (length - fixed) // 2)
    assert torch.equal(new.sum(1), sizes.sum(1))
    weigh = lambda t, s: (t * s[..., None].double()).sum(1)  # noqa: E731
    torch.testing.assert_close(weigh(out, new), weigh(tokens, sizes))
    assert torch.equal(out[:, :fixed], tokens[:, :fixed])
    assert torch.equal(new[:, :fixed], sizes[:, :fixed])


@given(st.lists(st.integers(0, 19), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_a_padded_row_is_merged_as_it_would_be_alone(lengths: list[int], most: int, padding: int, seed: int) -> None:
    fixed, longest = 2, 2 + max(lengths) + padding
    tokens, keys = rows(len(lengths), longest, seed)
    counts = torch.tensor(lengths)
    sizes = (torch.arange(longest) < fixed + counts[:, None]).float()
    together = merge(Merged(tokens, sizes, counts), keys, fixed, most)
    assert together.counts is not None
    for row, length in enumerate(lengths):
        own = slice(row, row + 1), slice(0, fixed + length)
        alone = merge(Merged(tokens[own], sizes[own], None), keys[own], fixed, most)
        left = alone.tokens.shape[1]
        assert int(together.counts[row]) == left - fixed
        torch.testing.assert_close(together.tokens[row, :left], alone.tokens[0])
        assert torch.equal(together.sizes[row, :left], alone.sizes[0])
        assert not together.sizes[row, left:].any()


def test_the_nearest_pairs_merge_by_their_sizes_and_order_is_kept() -> None:
    keys = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.9, 0.2], [1.0, 0.05]]])  # fixed, a, b, a, b
    tokens = torch.tensor([[[0.0], [10.0], [20.0], [30.0], [40.0]]])
    sizes = torch.tensor([[1.0, 3.0, 1.0, 1.0, 1.0]])
    out, new, _ = merge(Merged(tokens, sizes, None), keys, 1, 1)
    assert out.tolist() == [[[0.0], [20.0], [30.0], [(3 * 10 + 40) / 4]]]
    assert new.tolist() == [[1.0, 1.0, 1.0, 4.0]]


def test_several_may_merge_into_one() -> None:
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]]])
    tokens = torch.tensor([[[1.0], [3.0], [8.0], [100.0]]])
    out, new, _ = merge(Merged(tokens, torch.ones(1, 4), None), keys, 0, 2)
    assert out.tolist() == [[[4.0], [100.0]]]
    assert new.tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_narrow_type_stays_what_it_is(dtype: torch.dtype) -> None:
    tokens, keys = rows(2, 9, 0)
    out, sizes, _ = merge(Merged(tokens.to(dtype), torch.ones(2, 9), None), keys.to(dtype), 1, 3)
    assert out.dtype == dtype
    assert sizes.dtype == torch.float32


def test_gradients_reach_every_token() -> None:
    tokens, keys = rows(1, 9, 0)
    tokens.requires_grad_()
    out, sizes, _ = merge(Merged(tokens, torch.ones(1, 9), None), keys, 1, 4)
    (out * sizes[..., None]).sum().backward()
    torch.testing.assert_close(tokens.grad, torch.ones_like(tokens))
