from __future__ import annotations

import random

import pytest

from foreserve.fleet.capacity_cost import FEW, MOST_MEASURES, RequestCost


def seen(count: int = 500, seed: int = 0, noise: float = 0.0) -> RequestCost:
    """Requests that take 1 ms for each token of the prompt and 20 ms for each of the answer."""
    cost, rng = RequestCost(), random.Random(seed)
    for _ in range(count):
        prompt, answer = rng.randint(10, 3000), rng.randint(1, 400)
        took = 0.001 * prompt + 0.02 * answer
        cost.ended({"input_tokens": prompt, "output_tokens": answer}, took * (1.0 + noise * rng.uniform(-1.0, 1.0)))
    return cost


def test_a_request_costs_what_its_parts_do():
    cost = seen(2000)
    for prompt, answer in ((100.0, 300.0), (2000.0, 50.0), (1500.0, 200.0)):
        found = cost.of({"input_tokens": prompt, "output_tokens": answer})
        assert found == pytest.approx(0.001 * prompt + 0.02 * answer, rel=0.08)


def test_noise_is_averaged_out():
    cost = seen(2000, noise=0.8)
    long, short = ({"input_tokens": 500.0, "output_tokens": answer} for answer in (300.0, 30.0))
    assert (cost.of(long) or 0.0) / (cost.of(short) or 1.0) == pytest.approx(6.5 / 1.1, rel=0.2)


def test_what_would_be_less_than_nothing_is_nothing():
    cost, rng = RequestCost(), random.Random(1)
    for _ in range(500):  # long prompts happen to have short answers, and only answers take time
        answer = rng.randint(1, 400)
        cost.ended({"input_tokens": 500.0 - answer, "output_tokens": float(answer)}, 0.02 * answer)
    assert (cost.of({"input_tokens": 5000.0, "output_tokens": 1.0}) or 0.0) >= 0.0
    assert cost.of({"input_tokens": 100.0, "output_tokens": 400.0}) == pytest.approx(8.0, rel=0.1)


def test_it_takes_a_few_to_know_and_the_same_measures():
    cost = seen(FEW - 1)
    assert cost.of({"input_tokens": 10.0, "output_tokens": 1.0}) is None
    assert seen().of({"bytes": 4.0}) is None
    assert RequestCost().of({}) is None


def test_measures_are_bounded_and_what_is_not_finite_is_left_out():
    cost = RequestCost()
    for n in range(100):
        cost.ended({f"m{n}": 1.0}, 1.0)
        cost.ended({"m0": float("nan")}, 1.0)
    assert cost.of({"m0": 1.0}) is not None
    assert cost.of({f"m{MOST_MEASURES}": 1.0}) is None
