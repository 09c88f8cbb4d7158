from __future__ import annotations

import msgspec
import pytest

from foreserve.core import Ramp
from foreserve.fleet.ahead import Ahead, FrozenAhead


def ramp(base: int, steps: int, resource: str = "kv_tokens") -> Ramp:
    return Ramp(resource=resource, base=base, steps=steps, most=base + 10 * steps)


def test_the_vector_of_the_specification() -> None:
    ahead = Ahead({"kv_tokens": 10_000.0})
    for name, one in (("long", ramp(1000, 512)), ("short", ramp(200, 50))):
        ahead.map("kv_tokens").add(name, one)
    assert [ahead.peak(1), ahead.peak(50), ahead.peak(512)] == [0.12, 0.1298, 0.1511]
    ahead.map("kv_tokens").advance(50)
    assert ahead.peak(1) == pytest.approx((1050 + 250) / 10_000), "who has outlived its prediction is not counted 0"
    ahead.map("kv_tokens").remove("short")
    assert ahead.peak(1) == 0.105


def test_what_is_set_aside_is_held_at_every_step() -> None:
    ahead = Ahead({"kv_tokens": 600.0}, {"kv_tokens": 1000.0, "slots": 4.0})
    assert ahead.peak(10) == 0.0, "nothing ramps up"
    assert ahead.peak(10, [ramp(100, 50)]) == pytest.approx(0.509)
    assert ahead.above(0.39, 10) == 1.0
    assert ahead.until(ramp(601, 1)) == 0
    assert ahead.until(ramp(1, 1, "gpus")) == 0


def test_the_fullest_resource_counts() -> None:
    ahead = Ahead({"kv_tokens": 1000.0, "adapters": 10.0})
    assert ahead.peak(5, [ramp(100, 5), ramp(4, 1, "adapters"), ramp(10**6, 1, "unknown")]) == 0.4


def test_a_resource_that_there_is_none_of_is_more_than_full() -> None:
    ahead = Ahead({"kv_tokens": 0.0})
    assert ahead.peak(5, [ramp(1, 5)]) == float("inf")


def test_frozen_and_thawed_it_foresees_the_same() -> None:
    ahead = Ahead({"slots": 3.0}, {"slots": 3.0, "kv_tokens": 5000.0})
    ahead.map("kv_tokens").add("a", ramp(100, 50))
    ahead.map("kv_tokens").advance(7)
    ahead.beside = {"kv_tokens": 250.0}
    was = msgspec.json.decode(msgspec.json.encode(ahead.frozen()), type=FrozenAhead)
    again = Ahead.restored(was)
    for steps in (1, 40, 100):
        assert again.peak(steps, [ramp(30, 20)]) == ahead.peak(steps, [ramp(30, 20)])
        assert again.above(0.075, steps) == ahead.above(0.075, steps)
    assert again.until(ramp(4700, 5)) == ahead.until(ramp(4700, 5)) == 43
    assert again.frozen() == ahead.frozen()
