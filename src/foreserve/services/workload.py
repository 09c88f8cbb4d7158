"""What comes to one live service, and what will: counts, keeps, chooses a forecaster now and then, and foresees."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final

import msgspec
import numpy as np

from foreserve.clock import offload, wall
from foreserve.core import Outcome, Work
from foreserve.foresight.demand import Demand
from foreserve.foresight.workload import AUTO, Series, offered
from foreserve.foresight.workload_choice import Chosen, choose
from foreserve.loads import LoadStore
from foreserve.scaling import LoadForecast, Window
from foreserve.settings import ScalingSettings

log = logging.getLogger(__name__)

MOST_WINDOWS: Final = 50_000
CHOOSE_EVERY: Final = 60
"""Windows after which the forecasters are tried anew; sooner while there are few."""

CHOOSE_COST_S: Final = 1.0
"""What that is taken to last on a virtual clock."""

FIRST: Final = "last_value"
"""Who serves before any could be tried."""


class WorkloadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For people and metrics: how many windows are known, who foresees each measure, and why."""

    windows: int
    window_s: float
    forecasters: dict[str, str]
    why: dict[str, str]
    recent: dict[str, float]


def foreseen_of(work: Work) -> dict[str, float]:
    """What is foreseen of a request when it comes; what was turned away before it was priced counts as one of late."""
    if work.forecast is None:
        return {"requests": 1.0}
    forecast = work.forecast
    return {
        "requests": 1.0,
        "input_tokens": float(forecast.input_tokens),
        "output_tokens": forecast.output.mean,
        "seconds": forecast.seconds,
    }


def truth_of(outcome: Outcome) -> dict[str, float]:
    """What it was, of a request that was done; of one that was not nobody knows."""
    if outcome.started is None or outcome.code:
        return {}
    told = {"seconds": outcome.ended - outcome.started}
    if (tokens := outcome.usage.get("output_tokens", 0.0)) > 0:
        told["output_tokens"] = tokens
    if (tokens := outcome.usage.get("prompt_tokens", 0.0)) > 0:
        told["input_tokens"] = tokens
    return told


class ServiceLoad:
    """Of one service. All methods but `start` and `stop` are cheap, and never raise for what comes.

    Raises ConfigError for a forecaster that is none.
    """

    def __init__(self, name: str, settings: ScalingSettings) -> None:
        self.name = name
        self.settings = settings
        self._store: LoadStore | None = None
        self._candidates = offered(settings.forecaster, f"service {name!r}: scaling.forecaster")
        self._keep = min(MOST_WINDOWS, math.ceil(settings.keep_days * 86_400.0 / settings.window_s))
        self._windows: dict[int, Mapping[str, float]] = {}
        """By index, in order."""
        self._demand: Demand | None = None
        self._chosen: dict[tuple[str, int], Chosen] = {}
        self._chosen_at: dict[int, int] = {}
        """By horizon, the newest window when its forecasters were tried."""
        self._series: dict[str, Series] = {}
        self._told: dict[int, LoadForecast | None] = {}
        """What was foreseen of the series as it is now, by horizon."""
        self._choosing: asyncio.Task[None] | None = None

    # --- it starts and ends

    async def start(self, store: LoadStore | None = None) -> None:
        """Take up what came before. Without a store nothing outlives `stop`."""
        at, self._store = wall(), store
        self._demand = Demand(self.settings.window_s, at, self._keep)
        if store is None:
            return
        since = at - self._keep * self.settings.window_s
        try:
            self.take_up(await offload(lambda: store.windows(self.name, self.settings.window_s, since)))
        except Exception:
            log.exception("%s: the history of its load cannot be read; it begins anew", self.name)

    def take_up(self, windows: Sequence[Window]) -> None:
        """What came before now, oldest first; what is told later replaces it. Before anything has come."""
        if self._demand is not None:
            self._demand = Demand(self.settings.window_s, wall(), self._keep)
        for window in windows:
            if window.window_s == self.settings.window_s:
                self._windows[round(window.at / window.window_s)] = window.amounts
        self._windows = dict(sorted(self._windows.items()))
        self._new()

    async def stop(self) -> None:
        """End what runs beside the loop; keep what is over. Idempotent."""
        if self._choosing is not None:
            self._choosing.cancel()
            await asyncio.wait([self._choosing])
            self._choosing = None
        self._pass()

    # --- what comes

    def came(self, work: Work, at: float) -> None:
        """A request has come, at `at` (seconds since the epoch), whether it is taken in or not."""
        if self._demand is not None:
            self._demand.came(work.id, at, foreseen_of(work))

    def settled(self, outcome: Outcome) -> None:
        """It has ended."""
        if self._demand is not None:
            self._demand.ended(outcome.id, truth_of(outcome))

    # --- what will

    def recent(self, now: float) -> dict[str, float]:
        """Amounts for each second of late."""
        return {} if self._demand is None else self._demand.recent(wall())

    def forecast(self, horizon_s: float) -> LoadForecast | None:
        """Of the window that a decision now has to be right for: the first one that begins in `horizon_s` or later.

        Before a first window is over what comes of late is taken to go on; `None` before anything has come.
        """
        self._pass()
        steps = 1 + max(1, math.ceil(horizon_s / self.settings.window_s))
        if steps not in self._told:
            self._told[steps] = self._foresee(steps)
        if steps not in self._chosen_at or self._due(steps):
            self._choose(steps)
        told = self._told[steps]
        return self._going_on() if told is None else told

    def status(self) -> WorkloadStatus:
        """A snapshot."""
        steps = max(self._chosen_at, key=lambda each: self._chosen_at[each], default=0)
        chosen = {measure: one for (measure, ahead), one in self._chosen.items() if ahead == steps}
        return WorkloadStatus(
            windows=len(self._windows),
            window_s=self.settings.window_s,
            forecasters={measure: one.name for measure, one in chosen.items()},
            why={measure: one.why(self.settings.window_s) for measure, one in chosen.items()},
            recent=self.recent(0.0),
        )

    def _pass(self) -> None:
        """Take in the windows that are over."""
        if self._demand is None:
            return
        told = self._demand.told(wall())
        if not told:
            return
        for window in told:
            self._windows[round(window.at / window.window_s)] = window.amounts
            if self._store is not None:
                self._store.record(self.name, window)
        for index in list(self._windows)[: max(0, len(self._windows) - self._keep)]:
            del self._windows[index]
        self._new()

    def _new(self) -> None:
        """The series are others than before."""
        self._told.clear()
        self._series = _series(self._windows, self.settings, self._keep)

    def _foresee(self, steps: int) -> LoadForecast | None:
        found = {}
        for measure, series in self._series.items():
            chosen = self._chosen.get((measure, steps)) or self._untried(steps)
            if (told := chosen.foresee(series, self.settings.level)) is not None:
                found[measure] = (told, chosen)
        if not found or not self._windows:
            return None
        lead = found.get("output_tokens") or found.get("requests") or next(iter(found.values()))
        return LoadForecast(
            at=(max(self._windows) + steps) * self.settings.window_s,
            window_s=self.settings.window_s,
            expected={measure: told[0] for measure, (told, _) in found.items()},
            low={measure: told[1] for measure, (told, _) in found.items()},
            high={measure: told[2] for measure, (told, _) in found.items()},
            level=self.settings.level,
            model=lead[1].name,
            why=lead[1].why(self.settings.window_s),
        )

    def _untried(self, steps: int) -> Chosen:
        name = FIRST if FIRST in self._candidates else next(iter(self._candidates))
        return Chosen(name, self._candidates[name], steps)

    def _going_on(self) -> LoadForecast | None:
        recent = self.recent(0.0)
        if not recent.get("requests"):
            return None
        width = self.settings.window_s
        # Of so many requests a few more or less are no surprise (Poisson).
        off = NormalDist().inv_cdf(self.settings.level) / math.sqrt(recent["requests"] * width)
        return LoadForecast(
            at=wall(),
            window_s=width,
            expected={name: each * width for name, each in recent.items()},
            low={name: each * width * max(0.0, 1.0 - off) for name, each in recent.items()},
            high={name: each * width * (1.0 + off) for name, each in recent.items()},
            level=self.settings.level,
            model="recent",
            why="what came of late: no window is over yet",
        )

    # --- who foresees

    def _due(self, steps: int) -> bool:
        since = (max(self._windows) if self._windows else 0) - self._chosen_at[steps]
        return since >= CHOOSE_EVERY or (since > 0 and since >= len(self._windows) // 4)

    def _choose(self, steps: int) -> None:
        """Try them beside the loop; what is found takes over when it is done."""
        if self._choosing is None or self._choosing.done():
            self._chosen_at[steps] = max(self._windows) if self._windows else 0
            if len(self._windows) >= 2:
                self._choosing = asyncio.create_task(self._try(steps), name=f"forecasters of {self.name}")

    async def _try(self, steps: int) -> None:
        series = dict(self._series)
        before = {measure: one.name for (measure, ahead), one in self._chosen.items() if ahead == steps}

        def tried() -> dict[str, Chosen]:
            found = {}
            for measure, one in series.items():
                fresh = offered(self.settings.forecaster, self.name)
                found[measure] = choose(one, fresh, steps, before.get(measure), FIRST)
            return found

        try:
            found = await offload(tried, CHOOSE_COST_S)
        except Exception:
            log.exception("%s: its forecasters could not be tried; those in place stay", self.name)
            return
        for measure, chosen in found.items():
            if before.get(measure) != chosen.name and self.settings.forecaster == AUTO:
                log.info("%s: %s are foreseen by %s", self.name, measure, chosen.why(self.settings.window_s))
            self._chosen[measure, steps] = chosen
        self._told.clear()


def _series(windows: Mapping[int, Mapping[str, float]], settings: ScalingSettings, keep: int) -> dict[str, Series]:
    """By measure; a window that is not there is not known."""
    if not windows:
        return {}
    first, last = min(windows), max(windows)
    first = max(first, last - keep + 1)
    measures = dict.fromkeys(name for amounts in windows.values() for name in amounts)
    found = {}
    for measure in measures:
        values = np.full(last - first + 1, np.nan)
        for index, amounts in windows.items():
            if index >= first:
                values[index - first] = amounts.get(measure, 0.0)
        found[measure] = Series(first, settings.window_s, values, settings.day_s)
    return found
