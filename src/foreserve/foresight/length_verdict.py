"""Whether one predictor of lengths may take another's place: judged on the newest answers that neither learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from foreserve.core import Length
from foreserve.foresight.length import Ended
from foreserve.foresight.length_distribution import LEVELS
from foreserve.foresight.length_features import Features


class Sample(msgspec.Struct, frozen=True, eq=False):
    """A request as it was asked and how it ended."""

    features: Features
    ended: Ended


class Predicts(Protocol):
    """A model, or a history."""

    def predict(self, batch: Sequence[Features]) -> list[Length]: ...


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`better`: it may take the place. `why` says so in words, with both losses (tokens a quantile)."""

    better: bool
    why: str
    new: float = 0.0
    old: float = 0.0


def better(new: Predicts, old: Predicts | None, held_out: Sequence[Sample]) -> Verdict:
    """Whether `new` is no worse than `old` on `held_out`, by the pinball loss of its quantiles.

    With nothing to compare with, or nothing to judge by, it is.
    """
    if old is None or not held_out:
        missing = "nothing was there before" if old is None else "no newer answers to judge by"
        return Verdict(better=True, why=f"taken: {missing}")
    ours, theirs = loss(new, held_out), loss(old, held_out)
    words = f"loses {ours:.2f} tokens a quantile on the newest {len(held_out)} answers, the one in place {theirs:.2f}"
    if ours <= theirs:
        return Verdict(better=True, why=f"taken: {words}", new=ours, old=theirs)
    return Verdict(better=False, why=f"refused: {words}", new=ours, old=theirs)


def loss(predictor: Predicts, samples: Sequence[Sample]) -> float:
    """Mean pinball loss over the three quantiles, in tokens. An answer that was cut tells of those below it."""
    predicted = predictor.predict([sample.features for sample in samples])
    found = np.array([(length.p50, length.p80, length.p95) for length in predicted])
    tokens = np.array([max(sample.ended.tokens, 1) for sample in samples], np.float64)[:, None]
    cut = np.array([sample.ended.censored for sample in samples], np.bool_)[:, None]
    over = np.where(cut, 0.0, found - tokens)
    levels = np.array(LEVELS)
    lost = np.where(found < tokens, levels * (tokens - found), (1 - levels) * over)
    return float(lost.mean())
