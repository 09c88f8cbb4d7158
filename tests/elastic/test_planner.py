import itertools

import numpy as np
import pytest

from foreserve.elastic.planner import EXACT, Batch, plan


def single(deadline: float, seconds: list[float], worth: list[float]) -> Batch:
    return Batch([deadline], seconds, np.array(worth)[:, None], [0.0])


def worth_of(batches: list[Batch], chosen: tuple[int | None, ...], start: float) -> float:
    """By the rules alone: one after the other, each request's worth if it is on time."""
    now, total = start, 0.0
    for batch, setting in zip(batches, chosen, strict=True):
        if setting is not None:
            now = max(now, batch.earliest) + float(batch.seconds[setting])
            total += float(batch.gain(np.full(len(batch.seconds), now))[setting])
    return total


def best(batches: list[Batch], start: float) -> float:
    ways = [[None, *range(len(batch.seconds))] for batch in batches]
    return max(worth_of(batches, chosen, start) for chosen in itertools.product(*ways))


def drawn(draw: np.random.Generator, count: int, requests: int = 3) -> list[Batch]:
    made, deadline = [], 0.0
    for _ in range(count):
        deadline += draw.uniform(0, 8)
        n = int(draw.integers(1, requests + 1))
        settings = int(draw.integers(1, 5))
        seconds = np.sort(draw.integers(1, 12, settings)).astype(float)
        accuracy = draw.uniform(0.3, 1, settings)
        worth = accuracy[:, None] * draw.integers(1, 4, n)
        late = draw.choice([0.0, 0.1], n)
        earliest = float(draw.choice([-np.inf, deadline - 6]))
        made.append(Batch(deadline + draw.uniform(0, 3, n), [*seconds], worth, [*late], earliest))
    return made


def test_a_slower_setting_now_can_cost_a_later_batch_its_deadline() -> None:
    batches = [single(deadline, [4, 8, 10], [80, 90, 92]) for deadline in (8, 12, 12)]
    found = plan(batches, 0.0)
    assert found.settings == (0, 0, 0)
    assert found.worth == 240
    assert found.exact == 3


def test_it_is_worth_as_much_as_the_best_of_all_ways() -> None:
    draw = np.random.default_rng(1)
    for _ in range(1000):
        batches = drawn(draw, int(draw.integers(1, 6)))
        start = float(draw.uniform(0, 5))
        found = plan(batches, start)
        assert found.worth == pytest.approx(best(batches, start), abs=1e-9)
        assert worth_of(batches, found.settings, start) == pytest.approx(found.worth, abs=1e-9)


def test_with_any_budget_a_plan_is_what_it_says_it_is_worth() -> None:
    draw = np.random.default_rng(2)
    shares = []
    for _ in range(300):
        batches = drawn(draw, 6)
        exact = plan(batches, 0.0)
        for budget in (1, 20, 100):
            found = plan(batches, 0.0, budget)
            assert len(found.settings) == 6
            assert found.exact >= 1
            assert found.worth <= exact.worth + 1e-9
            assert worth_of(batches, found.settings, 0.0) == pytest.approx(found.worth, abs=1e-9)
            assert found.labels <= max(budget, 6)
            shares.append(found.worth / exact.worth)
    assert float(np.mean(shares)) > 0.9


def test_more_batches_than_are_planned_exactly() -> None:
    batches = drawn(np.random.default_rng(3), EXACT + 5)
    found = plan(batches, 0.0)
    assert found.exact == EXACT
    assert worth_of(batches, found.settings, 0.0) == pytest.approx(found.worth)


def test_what_is_done_at_its_deadline_is_on_time() -> None:
    assert plan([single(4, [4], [1])], 0.0).worth == 1
    assert plan([single(4, [4], [1])], 0.001).settings == (None,)


def test_what_has_no_hard_deadline_is_done_late_rather_than_never() -> None:
    soft = Batch([1.0], [2.0, 5.0], np.array([[0.5], [0.9]]), [0.1])
    assert plan([soft], 10.0).settings == (1,)
    assert plan([soft, single(13.0, [1.0], [1.0])], 10.0).settings == (0, 0)


def test_equals_go_to_the_one_done_first() -> None:
    assert plan([single(9, [3, 2, 4], [1, 1, 1])], 0.0).settings == (1,)


def test_nothing_waits() -> None:
    assert plan([], 3.0) == ((), 0.0, 0, 0, 0.0)


def falling(done: np.ndarray) -> np.ndarray:
    """Each second of the next ten brings 2, none later does."""
    return 2.0 * np.clip(10.0 - done, 0.0, None)


def test_with_what_comes_after_it_is_worth_as_much_as_the_best_of_all_ways() -> None:
    draw = np.random.default_rng(4)
    for _ in range(200):
        batches = drawn(draw, int(draw.integers(1, 5)))
        ways = itertools.product(*([None, *range(len(batch.seconds))] for batch in batches))
        totals = []
        for chosen in ways:
            now = 0.0
            for batch, setting in zip(batches, chosen, strict=True):
                if setting is not None:
                    now = max(now, batch.earliest) + float(batch.seconds[setting])
            totals.append(worth_of(batches, chosen, 0.0) + float(falling(np.array([now]))[0]))
        found = plan(batches, 0.0, after=falling)
        assert found.total == pytest.approx(max(totals), abs=1e-9)
        assert worth_of(batches, found.settings, 0.0) == pytest.approx(found.worth, abs=1e-9)


def test_time_that_others_need_goes_to_a_faster_setting_or_to_nobody() -> None:
    dear = single(20.0, [1.0, 4.0], [8.0, 9.0])
    assert plan([dear], 0.0).settings == (1,)
    assert plan([dear], 0.0, after=falling).settings == (0,)
    cheap = single(20.0, [1.0, 4.0], [1.0, 2.0])
    assert plan([cheap], 0.0, after=falling).settings == (None,)


def test_beyond_the_budget_what_comes_after_counts_as_well() -> None:
    batches = [single(20.0 + at, [1.0, 4.0], [8.0, 9.0]) for at in range(4)]
    found = plan(batches, 0.0, 1, falling)
    assert found.exact == 1
    assert found.settings == (0, 0, 0, 0)
    assert found.total == pytest.approx(found.worth + 2.0 * 6)


def test_a_stretched_batch_is_one_that_takes_longer() -> None:
    for batch in drawn(np.random.default_rng(4), 20):
        longer = batch.stretched(1.5)
        assert longer.seconds == pytest.approx(1.5 * batch.seconds)
        assert (longer.gains == batch.gains).all()
        assert plan([longer], 0.0).worth <= plan([batch], 0.0).worth


def test_a_batch_that_is_late_already_does_not_hurry_those_before_it() -> None:
    head, next_one = single(1.0, [0.5], [1.0]), single(50.0, [4.0, 10.0], [80.0, 92.0])
    late = Batch([-1.0], [4.0], np.array([[5.0]]), [0.1])
    assert plan([head, next_one, late], 0.0, budget=1).settings[1] == 1
