"""Made-up loads, the same for the same seed."""

from __future__ import annotations

import numpy as np

from foreserve.foresight.workload import Floats, Series

HOUR = 3600.0


def daily(days: float, seed: int = 0, window_s: float = HOUR, noise: float = 0.05) -> Series:
    """A load with a day, and noise by `noise` of it."""
    rng = np.random.default_rng(seed)
    at = np.arange(0.0, days * 86_400.0, window_s) / 86_400.0
    return series(
        1000.0 * (1.0 + 0.6 * np.sin(2 * np.pi * at)) * np.exp(noise * rng.standard_normal(len(at))), window_s
    )


def series(values: Floats | list[float], window_s: float = HOUR, first: int = 0) -> Series:
    return Series(first, window_s, np.asarray(values, dtype=np.float64))


def walk(windows: int, seed: int = 0, step: float = 0.05) -> Series:
    """A load that goes on from where it is."""
    rng = np.random.default_rng(seed)
    return series(1000.0 * np.exp(np.cumsum(step * rng.standard_normal(windows))))
