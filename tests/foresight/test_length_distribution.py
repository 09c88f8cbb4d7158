import numpy as np
import pytest

from foreserve.foresight.length_distribution import CELLS, EDGES, LEVELS, cell, level_of, means, quantiles, read


def of(tokens):
    """The distribution function of these lengths, each alike."""
    counts = np.bincount([cell(n) for n in tokens], minlength=CELLS)
    return np.concatenate([[0.0], np.cumsum(counts) / len(tokens)])


def test_the_grid_tells_short_lengths_apart_and_long_ones_to_a_tenth():
    assert [cell(n) for n in range(1, 11)] == list(range(10))
    widths = np.diff(EDGES)[12:]
    assert (widths / EDGES[12:-1]).max() <= 0.13
    assert cell(10**9) == CELLS - 1
    assert cell(0) == 0


def test_mean_and_quantiles_of_known_lengths():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2000, 4000)
    cdf = of(lengths)[None]
    for level in LEVELS:
        assert quantiles(cdf, np.array([[level]]))[0, 0] == pytest.approx(np.quantile(lengths, level), rel=0.03)
    assert means(cdf, np.array([1e6]))[0] == pytest.approx(lengths.mean(), rel=0.02)
    assert means(cdf, np.array([500.0]))[0] == pytest.approx(np.minimum(lengths, 500).mean(), rel=0.02)


def test_one_length_alone():
    cdf = of([1])[None]
    length = read(cdf, [4096], "x", levels=np.array([LEVELS]), mean=means(cdf, np.array([4096.0])))[0]
    assert (length.mean, length.p50) == (1.0, 1.0)
    assert 1 < length.p80 < length.p95 < 1.5


def test_levels_and_quantiles_are_each_others_opposite():
    cdf = np.stack([of(range(1, 100)), of([3, 50, 700])])
    levels = np.array([0.37, 0.5])
    assert [quantiles(cdf[i : i + 1], levels[i : i + 1, None])[0] for i in (0, 1)] == list(
        quantiles(cdf, levels[:, None])
    )
    assert level_of(cdf, quantiles(cdf, levels[:, None])[:, 0]) == pytest.approx(levels)


def test_what_is_read_is_ordered_and_within_the_limit():
    rng = np.random.default_rng(1)
    cdf = np.stack([of(rng.integers(1, top, 50)) for top in (2, 10, 5000)])
    for most in (0, 1, 7, 10**6):
        levels = np.tile([0.6, 0.55, 0.9], (3, 1))  # drifted past one another
        for length in read(cdf, [most] * 3, "x", levels=levels, mean=np.array([1e9] * 3)):
            assert 1 <= length.p50 <= length.p80 <= length.p95 <= max(most, 1)
            assert 1 <= length.mean <= max(most, 1)
