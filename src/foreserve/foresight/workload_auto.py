"""Which forecaster is asked: the one that has been nearest on this service's own history, at the horizon acted on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Final

import msgspec
import numpy as np

from foreserve.foresight.workload import Floats, Forecaster, Series, words
from foreserve.foresight.workload_interval import interval
from foreserve.foresight.workload_rolling import Rolling, scored

MARGIN: Final = 0.03
"""Another one is asked once its mean error is less than that of the one in place by this share of it."""

LEAST: Final = 8
LEAST_SHARE: Final = 1 / 3
"""Windows on which two have to be compared before one takes the other's place, at the least and as a share of those on
which the one in place was judged: few are easily won by luck."""

SMALL: Final = 0.1
"""Amounts below this share of the mean count as so much when an error is told as a share: few requests more or less in
an idle hour are no great error."""

FIRST: Final = ("last_value", "smoothing")
"""Who is asked, of those there are, while none can be judged."""


class Foreseen(msgspec.Struct, frozen=True, kw_only=True):
    """What is foreseen of one measure in the window at `index`, and by whom.

    `error` is the mean error by forecaster, as a share, over the same `judged` windows.
    """

    index: int
    expected: float
    low: float
    high: float
    model: str
    why: str
    error: dict[str, float] = {}
    judged: int = 0


class Outlook:
    """One measure of one service, `steps` windows ahead.

    `update` is quick but for long histories; what takes time is left to `due`, `Rolling.learn` and `take`.
    """

    def __init__(self, offered: Mapping[str, Forecaster], steps: int, level: float) -> None:
        """`offered` are the forecasters by name, made for this measure alone; of one there is nothing to choose."""
        self.steps = steps
        self.rolling = {name: Rolling(name, forecaster, steps) for name, forecaster in offered.items()}
        self._level = level
        self._model = next((name for name in (*FIRST, *offered) if name in offered), "")
        self._pairs = list(combinations(sorted(offered), 2))

    def due(self, series: Series) -> list[Rolling]:
        """Those that should be trained now."""
        return [rolling for rolling in self.rolling.values() if rolling.due(series)]

    def update(self, series: Series) -> Foreseen | None:
        """Of the window `steps` after the end of `series`; `None` where nothing is known at all."""
        for rolling in self.rolling.values():
            rolling.extend(series)
        end = series.first + len(series)
        back = min(len(series), scored(series))
        indices = range(end - back, end)
        came = series.values[len(series) - back :]
        made = {name: rolling.of(range(end - back, end + self.steps)) for name, rolling in self.rolling.items()}
        for pair in self._pairs:
            made[" + ".join(pair)] = (made[pair[0]] + made[pair[1]]) / 2.0
        known = came[np.isfinite(came)]
        floor = SMALL * float(known.mean()) if len(known) else 0.0
        errors = {name: _errors(amounts[:back], came, floor) for name, amounts in made.items()}
        self._choose(errors, {name for name, amounts in made.items() if np.isfinite(amounts[-1])})
        asked = self._answering(made)
        if asked is None:
            return None
        expected = float(made[asked][-1])
        low, high = interval(expected, made[asked][:back], came, self._level, floor)
        error, judged = _compared(asked, errors)
        return Foreseen(
            index=indices.stop - 1 + self.steps,
            expected=expected,
            low=low,
            high=high,
            model=asked,
            why=_why(asked, error if judged >= LEAST else {}, self.steps, judged * series.window_s),
            error=error,
            judged=judged,
        )

    def _choose(self, errors: Mapping[str, Floats], telling: set[str]) -> None:
        """Whether another takes the place of the one that is asked."""
        best, ratio = self._model, 1.0 - MARGIN
        mine = errors.get(self._model)
        for name in sorted(telling - {self._model}):
            if mine is None or self._model not in telling:
                best, mine = name, errors[name]
                continue
            both = np.isfinite(errors[name]) & np.isfinite(mine)
            if both.sum() < max(LEAST, LEAST_SHARE * np.isfinite(mine).sum()):
                continue
            theirs, ours = float(errors[name][both].mean()), float(mine[both].mean())
            if ours > 0.0 and theirs / ours < ratio:
                best, ratio = name, theirs / ours
        self._model = best

    def _answering(self, made: Mapping[str, Floats]) -> str | None:
        """The one chosen, or where it cannot tell now another that can."""
        return next(
            (name for name in (self._model, *FIRST, *made) if name in made and np.isfinite(made[name][-1])), None
        )


def _errors(made: Floats, came: Floats, floor: float) -> Floats:
    """By window, as shares of what came; `nan` where either is not known, or nothing ever came."""
    scale = np.maximum(came, floor)
    there = np.isfinite(made) & np.isfinite(came) & (scale > 0.0)
    return np.where(there, np.abs(made - came) / np.where(there, scale, 1.0), np.nan)


def _compared(asked: str, errors: Mapping[str, Floats]) -> tuple[dict[str, float], int]:
    """Mean errors over the windows of which all those compared have told, and how many windows those are.

    Compared are the one that is asked and those single ones that have told of at least half its windows.
    """
    own = np.isfinite(errors[asked])
    others = [
        name for name in errors
        if name != asked and " + " not in name and (np.isfinite(errors[name]) & own).sum() >= max(LEAST, own.sum() / 2)
    ]  # fmt: skip
    for name in others:
        own = own & np.isfinite(errors[name])
    if not own.any():
        return {}, 0
    return {name: float(errors[name][own].mean()) for name in (asked, *others)}, int(own.sum())


NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _why(asked: str, error: Mapping[str, float], steps: int, judged_s: float) -> str:
    """`smoothing: 4.1 % mean error two windows ahead over the last 3 days, seasonal naive 6.0 %`."""
    if not error:
        return f"{words(asked)}: too little has been seen to judge it"
    ahead = f"{NUMBERS[steps] if steps < len(NUMBERS) else steps} window{'' if steps == 1 else 's'} ahead"
    first = f"{words(asked)}: {_told(error[asked])} mean error {ahead} over the last {span(judged_s)}"
    others = sorted((share, name) for name, share in error.items() if name != asked)
    return ", ".join([first, *(f"{words(name)} {_told(share)}" for share, name in others)])


def _told(share: float) -> str:
    """How much larger than the load errors are tells nobody anything."""
    return f"{100 * share:.1f} %" if share <= 1.0 else "over 100 %"


def span(seconds: float) -> str:
    """A length of time in words, to the nearest whole unit of which there are two."""
    for unit, size in (("day", 86_400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 1.95 * size:
            return f"{round(seconds / size)} {unit}s"
    return f"{round(seconds)} seconds"
