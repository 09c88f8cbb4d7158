"""What comes next: the protocol of forecasters, what they are told, and which there are.

A forecaster sees one measure of one service (its requests, its tokens) as a series of windows of equal length, in which
`nan` stands for a window that is not known: the server was down. That is never taken for zero.
"""

from __future__ import annotations

import logging
from typing import ClassVar, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve import registry
from foreserve.errors import ConfigError

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

AUTO: Final = "auto"
DAY_S: Final = 86_400.0


class Series(msgspec.Struct, frozen=True):
    """Amounts by window; the first one begins at `first * window_s` seconds since the epoch.

    `values` is not written to by anybody; `nan` is not known. `day_s` is how long a day is.
    """

    first: int
    window_s: float
    values: Floats
    day_s: float = DAY_S

    def __len__(self) -> int:
        return len(self.values)

    @property
    def day(self) -> int:
        """Windows in a day, to the nearest."""
        return max(1, round(self.day_s / self.window_s))

    def before(self, end: int) -> Series:
        """What was known when the window at place `end` began."""
        return Series(self.first, self.window_s, self.values[:end], self.day_s)


class Forecaster(Protocol):
    """Foresees one measure. Deterministic in these calls: no clock, no global random state.

    One is made for each measure. `learns` says whether `fit` is worth calling: it is then called rarely, off the loop,
    and what it returns takes over; else never. With `dear = True` beside it that is still rarer, and never simulated.
    """

    learns: ClassVar[bool]

    def fit(self, series: Series, steps: int) -> Forecaster:
        """One that has learned from all of `series` to forecast `steps` windows ahead. Leaves this one as it is.

        Raises ValueError where there is too little to learn from, in words.
        """
        ...

    def forecast(self, series: Series, origins: Places, steps: int) -> Floats:
        """For each place in `origins` the amount of the window `steps` after it, told by what came up to it alone.

        `nan` where it cannot tell. Origins are in order and within the series.
        """
        ...


def filled(values: Floats) -> Floats:
    """`values` with each unknown window as the last known one before it; unknown ones at the start stay `nan`."""
    known = np.isfinite(values)
    places = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return np.where(places >= 0, values[np.maximum(places, 0)], np.nan)


def names() -> list[str]:
    """The registered forecasters, sorted."""
    return registry.names("forecaster")


def make(name: str, where: str) -> Forecaster:
    """One by name. Raises ConfigError for a name that is none, or where its package is missing."""
    made: Forecaster = registry.load("forecaster", name, where, also=(AUTO,))()
    return made


def offered(name: str, where: str) -> dict[str, Forecaster]:
    """Those that `name` stands for: itself, or for `auto` all that can be used here. Raises ConfigError."""
    if name != AUTO:
        return {name: make(name, where)}
    found: dict[str, Forecaster] = {}
    for each in names():
        try:
            found[each] = make(each, where)
        except (ConfigError, ImportError) as error:  # a package is missing
            log.debug("%s: forecaster %s is not offered: %s", where, each, error)
    return found


def words(name: str) -> str:
    """A forecaster's name for people."""
    return name.replace("_", " ").replace(" + ", " with ")
