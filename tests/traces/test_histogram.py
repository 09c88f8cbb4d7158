import numpy as np
import pytest

from foreserve.simulation.histogram import Histogram as SimulationHistogram
from foreserve.traces import histogram
from foreserve.traces.histogram import Histogram, Named, SeenBefore, Timeline, nearest_rank


def test_quantiles_are_near_the_true_ones_with_few_counters():
    values = np.random.default_rng(0).lognormal(8, 3, 50_000).astype(int)
    found = Histogram()
    for value in values.tolist():
        found.add(value)
    for share in (0.1, 0.5, 0.99):
        assert found.quantiles([share])[0] == pytest.approx(np.quantile(values, share), rel=0.01)
    assert found.quantiles([1.0])[0] == values.max()
    assert len(found._counts) < 30_000
    assert found.total / found.count == pytest.approx(values.mean())


def test_small_numbers_are_exact():
    found = Histogram()
    for value in [3, 1, 2, 2]:
        found.add(value)
    assert found.quantiles([0.25, 0.5, 0.75, 1.0]) == [1, 2, 2, 3]
    assert found.cdf(100) == [(1, 0.25), (2, 0.75), (3, 1.0)]


def test_a_large_number_is_told_to_a_two_thousandth():
    for value in (2049, 4095, 123_457, 2**40 - 1):
        found = Histogram()
        found.add(value)
        found.add(10 * value)  # so that what is told is not the largest
        assert found.quantiles([0.5])[0] == pytest.approx(value, rel=1 / 2000)


def test_ranks_are_those_of_a_simulation():
    rng = np.random.default_rng(1)
    for n in (1, 7, 100, 700, 1000):
        values = rng.lognormal(0, 1, n).tolist()
        mine, theirs = Histogram(1e6), SimulationHistogram()
        for value in values:
            mine.add(value)
            theirs.add(value)
        for share in (0.07, 0.5, 0.9, 0.99):
            exact = sorted(values)[nearest_rank(share, n) - 1]
            assert mine.quantiles([share])[0] == pytest.approx(exact, rel=1 / 2000)
            assert theirs.quantile(share) == pytest.approx(exact, rel=0.01)
    assert nearest_rank(0.07, 100) == 7


def test_fractions_by_scale():
    found = Histogram(1e6)
    found.add(0.123456)
    assert found.quantiles([0.5])[0] == pytest.approx(0.123456, rel=0.001)


def test_a_cdf_has_few_points_and_ends_at_1():
    found = Histogram()
    for value in range(2000):
        found.add(value)
    points = found.cdf(50)
    assert len(points) <= 52
    assert points[-1] == (1999, 1.0)


def test_names_beyond_the_bound_are_counted_together(monkeypatch):
    monkeypatch.setattr(histogram, "MOST_NAMES", 2)
    found = Named()
    for name in "aabcdc":
        found.add(name)
    assert found.counts() == {"(others)": 3, "a": 2, "b": 1}


def test_blocks_seen_before():
    found = SeenBefore()
    assert found.share() is None
    for prefix in ((1, 2), (1, 2, 3), (1, 9)):
        found.add(prefix)
    assert found.blocks == 7
    assert found.share() == 3 / 7


def test_with_many_hashes_a_sample_tells_nearly_the_same():
    rng = np.random.default_rng(0)
    exact, sampled = SeenBefore(10**9), SeenBefore(500)
    for block in rng.zipf(1.3, 50_000).tolist():
        exact.add((block,))
        sampled.add((block,))
    assert len(sampled._known) <= 500 < len(exact._known)
    assert sampled.share() == pytest.approx(exact.share(), abs=0.1)
    fresh = SeenBefore(500)
    for block in range(20_000):
        fresh.add((block,))
    for block in range(20_000):
        fresh.add((block,))
    assert fresh.share() == pytest.approx(0.5, abs=0.06)


def test_bins_widen_and_keep_their_sums():
    found = Timeline()
    for at in range(5000):
        found.add(float(at), 2, 3)
    assert found.width_s == 8.0
    assert len(found.sums[0]) == 625
    assert [sum(bins) for bins in found.sums] == [5000, 10_000, 15_000]
    assert set(found.sums[0]) == {8.0}
