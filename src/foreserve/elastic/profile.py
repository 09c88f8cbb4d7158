"""How long a batch takes on this device and how much memory, by setting, size and length; kept true as it runs."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.dispatch.pace import Mean
from foreserve.elastic.setting import parse_setting
from foreserve.errors import ConfigError

Grid = tuple[tuple[float, ...], ...]
"""A value for each size (rows) and length (columns)."""

LEAST_GUARD, MOST_GUARD = 0.25, 20.0

MOST_CURVES = 256
"""Times by size that are remembered."""

MOST_TIMES = 8192
"""Times of one size that are remembered."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and bytes of one forward pass, measured on `device` at several batch `sizes` and input `lengths`.

    `lengths` are in tokens, padding counted; of images there is one. `seconds` are what nearly no pass exceeds, and
    `bytes` what a pass takes beside the weights, both by setting as it is spelled. Raises ConfigError for tables that
    do not fit.
    """

    sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    seconds: dict[str, Grid]
    bytes: dict[str, Grid] = {}
    device: str = ""

    def __post_init__(self) -> None:
        for name, steps in (("sizes", self.sizes), ("lengths", self.lengths)):
            if not steps or list(steps) != sorted(set(steps)) or steps[0] < 1:
                raise ConfigError(f"profile: `{name}` are {list(steps)}; they must rise and be at least 1")
        if not self.seconds:
            raise ConfigError("profile: `seconds` has no setting")
        for table in (self.seconds, self.bytes):
            for setting, grid in table.items():
                parse_setting(setting)
                if [len(row) for row in grid] != [len(self.lengths)] * len(self.sizes):
                    words = f"{len(self.sizes)} rows of {len(self.lengths)} values"
                    raise ConfigError(f"profile: {setting!r} must have {words}, one for each size and length")
                if not all(value > 0 for row in grid for value in row):
                    raise ConfigError(f"profile: {setting!r} has values that are not above 0")


UNKNOWN = Profile(sizes=(1,), lengths=(1,), seconds={"plain": ((0.01,),)})
"""Where nothing was measured: the times are learned from what is served."""


class Timing:
    """A profile with what has been learned since: by how much passes take longer than it says, nearly all of them."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._ratio = Mean()
        self._curves: dict[tuple[str, int], NDArray[np.float64]] = {}
        self._times: dict[tuple[str, int, int], float] = {}

    @property
    def guard(self) -> float:
        """The factor by which the profile's seconds are stretched; 1 until a pass has been seen."""
        if self._ratio.value is None:
            return 1.0
        return min(max(self._ratio.value + 2 * self._ratio.deviation, LEAST_GUARD), MOST_GUARD)

    def seconds(self, setting: str, size: int, length: int) -> float:
        """What a batch of `size` inputs of up to `length` tokens takes under a setting of the profile, at the most."""
        return self.guard * self._profiled(setting, size, length)

    def curve(self, setting: str, most: int, length: int) -> NDArray[np.float64]:
        """`seconds` of batches of 1 to `most`, never less for more."""
        found = self._curves.get((setting, length))
        if found is None or len(found) < most:
            if len(self._curves) >= MOST_CURVES:
                self._curves.clear()
            times = [self._profiled(setting, size, length) for size in range(1, most + 1)]
            found = self._curves[setting, length] = np.maximum.accumulate(times)
        return self.guard * found[:most]

    def bytes(self, setting: str, size: int, length: int) -> float:
        """What it takes beside the weights; 0 where that was not measured."""
        grid = self.profile.bytes.get(setting)
        return 0.0 if grid is None else interpolated(self.profile, grid, size, length)

    def learn(self, setting: str, size: int, length: int, seconds: float) -> None:
        """A batch took so long."""
        if setting in self.profile.seconds:
            self._ratio.take(seconds / self._profiled(setting, size, length))

    def _profiled(self, setting: str, size: int, length: int) -> float:
        found = self._times.get((setting, size, length))
        if found is None:
            if len(self._times) >= MOST_TIMES:
                self._times.clear()
            found = interpolated(self.profile, self.profile.seconds[setting], size, length)
            self._times[setting, size, length] = found
        return found

    def bucket(self, length: int) -> int:
        """The least of the profile's lengths that holds `length` tokens; beyond the longest, `length` itself."""
        at = bisect.bisect_left(self.profile.lengths, length)
        return self.profile.lengths[at] if at < len(self.profile.lengths) else length

    def fastest(self, plans: Mapping[str, float], size: int, length: int) -> float:
        """Seconds under the quickest setting of `plans`."""
        return self.guard * min([self._profiled(setting, size, length) for setting in plans])


def interpolated(profile: Profile, grid: Grid, size: int, length: int) -> float:
    """On the lines between what was measured. Beyond the largest in proportion, below the smallest as that."""
    low, high, share, times = _between(profile.sizes, size)
    shorter, longer, along, further = _between(profile.lengths, length)
    rows = [(1 - along) * grid[row][shorter] + along * grid[row][longer] for row in (low, high)]
    return ((1 - share) * rows[0] + share * rows[1]) * times * further


def _between(steps: tuple[int, ...], value: int) -> tuple[int, int, float, float]:
    """The steps on both sides, how far along between them, and how many times the last step where beyond it."""
    if value <= steps[0]:
        return 0, 0, 0.0, 1.0
    if value >= steps[-1]:
        last = len(steps) - 1
        return last, last, 0.0, value / steps[-1]
    above = bisect.bisect_left(steps, value)
    return above - 1, above, (value - steps[above - 1]) / (steps[above] - steps[above - 1]), 1.0
