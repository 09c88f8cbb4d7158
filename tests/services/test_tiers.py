from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from foreserve.errors import ConfigError
from foreserve.foresight.length_features import MEANING, Encoder
from foreserve.services.tiers import MOST_S, QUICK_S, TRIES, choose, measured


class Scripted:
    """Takes `seconds` for every text, on a clock of its own."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.asked = 0

    def instructions(self, texts: Sequence[str]) -> NDArray[np.float16]:
        return self.inputs(texts)

    def inputs(self, texts: Sequence[str]) -> NDArray[np.float16]:
        self.now += self.seconds
        self.asked += 1
        return np.zeros((len(texts), MEANING), np.float16)

    def here(self) -> tuple[Encoder, float]:
        return self, measured(self, lambda: self.now)


def missing() -> tuple[Encoder, float]:
    raise ConfigError("install it with: pip install x")


@pytest.mark.parametrize(("seconds", "tier"), [(QUICK_S / 2, "full"), (QUICK_S * 1.1, "fast")])
def test_auto_is_the_full_tier_where_it_is_quick_enough_and_says_what_it_measured(seconds: float, tier: str):
    choice, encoder = choose("auto", Scripted(seconds).here)
    assert choice.tier == tier
    assert (encoder is not None) == (tier == "full")
    assert f"{seconds * 1e3:.1f} ms" in choice.why
    assert choice.p50_s == pytest.approx(seconds)


def test_full_by_name_is_full_however_slow():
    choice, encoder = choose("full", Scripted(1.0).here)
    assert (choice.tier, encoder is not None) == ("full", True)


def test_what_is_missing_is_told_and_is_an_error_only_where_it_was_wanted():
    choice, encoder = choose("auto", missing)
    assert (choice.tier, encoder) == ("fast", None)
    assert "pip install x" in choice.why
    with pytest.raises(ConfigError, match="pip install x"):
        choose("full", missing)


def test_an_encoder_that_fails_is_done_without_where_nobody_named_it():
    def broken() -> tuple[Encoder, float]:
        raise RuntimeError("no such plugin")

    choice, encoder = choose("auto", broken)
    assert (choice.tier, encoder) == ("fast", None)
    assert "no such plugin" in choice.why
    with pytest.raises(RuntimeError, match="no such plugin"):
        choose("full", broken)


@pytest.mark.parametrize("wanted", ["fast", "histogram", "off"])
def test_what_needs_no_encoder_loads_none(wanted: str):
    def never() -> tuple[Encoder, float]:
        raise AssertionError

    here: Callable[[], tuple[Encoder, float]] = never
    choice, encoder = choose(wanted, here)  # type: ignore[arg-type]
    assert (choice.tier, encoder) == (wanted, None)


def test_measuring_is_bounded():
    quick, slow = Scripted(0.001), Scripted(2.0)
    quick.here()
    slow.here()
    assert quick.asked == 1 + TRIES
    assert slow.now <= MOST_S + 2 * 2.0
