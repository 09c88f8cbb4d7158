"""How far a forecast may be off, told by how far those before it have been."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from foreserve.foresight.workload import Floats

LEAST: Final = 8
"""Forecasts that must have been judged before their errors are taken for what is to be expected."""

UNKNOWN: Final = 0.5
"""Before that, an amount may be so much above or below what is foreseen, as a share of it."""


def interval(expected: float, made: Floats, came: Floats, level: float, floor: float) -> tuple[float, float]:
    """The least and the most that comes, each with a chance of `level`, about `expected`.

    `made` are forecasts made before at the same horizon and `came` what came. Errors are taken as shares of what was
    foreseen, plus `floor`, below which an amount is taken for small: so they scale with the load. The rank that is
    read off n of them is the one of n + 1 (as in conformal prediction), which holds for few as for many.
    """
    known = np.isfinite(made) & np.isfinite(came)
    scale = expected + floor
    if known.sum() < LEAST:
        return max(0.0, expected - UNKNOWN * scale), expected + UNKNOWN * scale
    errors = np.sort((came[known] - made[known]) / np.maximum(made[known] + floor, 1e-12))
    high = expected + scale * _rank(errors, level)
    low = expected - scale * _rank(-errors[::-1], level)
    return min(expected, max(0.0, low)), max(expected, high)


def _rank(errors: Floats, level: float) -> float:
    """The error that is not exceeded with a chance of `level`."""
    place = math.ceil((len(errors) + 1) * level) - 1
    return float(errors[min(max(place, 0), len(errors) - 1)])
