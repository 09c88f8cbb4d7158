"""What comes to one live service, and what will: counts, keeps, trains forecasters beside the loop, and foresees."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import msgspec

from foreserve.clock import offload, wall
from foreserve.core import Outcome, Work
from foreserve.foresight.demand import REQUESTS, Demand
from foreserve.foresight.workload import Forecaster, Series, offered
from foreserve.foresight.workload_auto import LEAST, Foreseen, Outlook
from foreserve.foresight.workload_rolling import is_dear
from foreserve.loads import LoadStore
from foreserve.scaling import LoadForecast, Window
from foreserve.settings import ScalingSettings

log = logging.getLogger(__name__)

MOST_WINDOWS: Final = 12_096
"""The newest windows that are forecast from: twelve weeks of ten minutes, eight days of one."""

UPDATE_COST_S: Final = 0.05
LEARN_COST_S: Final = 2.0
"""What looking at a new window and one training are taken to last on a virtual clock."""

MOST_OUTLOOKS: Final = 3
"""Horizons of which what has been tried is held."""

LEADS: Final = ("output_tokens", "seconds", REQUESTS)
"""The measure whose forecaster is named for the whole, the first of these that is foreseen."""

Key = tuple[str, int]
"""A measure, and how many windows ahead."""


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
        return {"input_tokens": float(work.ramp.base)} if work.ramp is not None else {}
    forecast = work.forecast
    if not forecast.most_tokens:
        return {"seconds": forecast.seconds}
    return {
        "input_tokens": float(forecast.input_tokens),
        "output_tokens": forecast.output.mean,
        "seconds": forecast.seconds,
    }


def truth_of(outcome: Outcome) -> dict[str, float]:
    """What it came to, of a request that was done; what others would have come to nobody knows."""
    if outcome.started is None or outcome.code:
        return {}
    told = {"seconds": max(0.0, outcome.ended - outcome.started)}
    for measure, name in (("input_tokens", "prompt_tokens"), ("output_tokens", "output_tokens")):
        if (tokens := outcome.usage.get(name, 0.0)) > 0:
            told[measure] = tokens
    return told


class ServiceLoad:
    """Of one service. All methods but `start` and `stop` are cheap, and never raise for what comes.

    A forecast is made once for each window, when the one before is over; in between it is read off. Raises ConfigError
    for a forecaster that is none.
    """

    def __init__(self, name: str, settings: ScalingSettings) -> None:
        self.name = name
        self.settings = settings
        self._offered()
        self._keep = min(MOST_WINDOWS, math.ceil(settings.keep_days * 86_400.0 / settings.window_s))
        self._store: LoadStore | None = None
        self._demand: Demand | None = None
        self._before: list[Window] = []
        self._steps = 2
        self._outlooks: dict[int, dict[str, Outlook]] = {}
        """By horizon and measure, the horizon that was asked for last at the end."""
        self._told: dict[int, dict[str, Foreseen]] = {}
        self._others = asyncio.Event()
        """Other windows are over, or another horizon is asked for."""
        self._turn = asyncio.Lock()
        """Who holds it may change what is known of forecasters."""
        self._tasks: list[asyncio.Task[None]] = []
        self._learning: asyncio.Task[None] | None = None

    def _offered(self) -> dict[str, Forecaster]:
        found = offered(self.settings.forecaster, f"service {self.name!r}: scaling.forecaster")
        if self.settings.forecaster == "auto" and _virtual():
            return {name: one for name, one in found.items() if not is_dear(one)}
        return found

    # --- it starts and ends

    async def start(self, store: LoadStore | None = None) -> None:
        """Take up what came before, and count from now on. Without a store nothing outlives `stop`."""
        self._store = store
        if store is not None:
            since = wall() - self._keep * self.settings.window_s
            try:
                self.take_up(await offload(lambda: store.windows(self.name, self.settings.window_s, since)))
            except Exception:
                log.exception("%s: the history of its load cannot be read; it begins anew", self.name)
        self._begin()
        self._tasks = [
            asyncio.create_task(self._watch(), name=f"windows of {self.name}"),
            asyncio.create_task(self._foresee(), name=f"forecasts of {self.name}"),
        ]

    def take_up(self, windows: Sequence[Window]) -> None:
        """What came before now, oldest first. To be told before anything has come."""
        self._before = [*self._before, *windows]
        if self._demand is not None:
            self._begin()

    def _begin(self) -> None:
        self._demand = Demand(self.settings.window_s, wall(), self._keep, self._before, self.settings.day_s)
        self._others.set()

    async def stop(self) -> None:
        """End what runs beside the loop; keep what is over. Idempotent."""
        tasks = [*self._tasks, *([self._learning] if self._learning is not None else [])]
        self._tasks, self._learning = [], None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._demand is not None and self._store is not None:
            self._demand.stop(wall())
            self._keep_changed(self._demand, self._store)
        self._store = None

    # --- what comes

    def came(self, work: Work, at: float) -> None:
        """A request has come, at `at` (seconds since the epoch), whether it is taken in or not."""
        if self._demand is not None:
            self._demand.came(work.id, foreseen_of(work), at)

    def refused(self, work: Work, at: float) -> None:
        """One has come and was not taken in, before its payload was looked at. Nothing more will be told of it."""
        if self._demand is not None:
            self._demand.came(work.id, foreseen_of(work), at)
            self._demand.ended(work.id, {})

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
        steps = 1 + max(1, math.ceil(horizon_s / self.settings.window_s))
        if steps != self._steps:
            self._steps = steps
            self._others.set()
        near = min(self._told, key=lambda each: abs(each - steps), default=None)
        told = {} if near is None else self._told[near]
        current = math.inf if self._demand is None else self._demand.index
        told = {measure: one for measure, one in told.items() if one.index >= current}
        return self._forecast(told) if told else self._going_on()

    def status(self) -> WorkloadStatus:
        """A snapshot."""
        told = self._told.get(self._steps, {})
        return WorkloadStatus(
            windows=0 if self._demand is None else self._demand.known,
            window_s=self.settings.window_s,
            forecasters={measure: one.model for measure, one in told.items()},
            why={measure: one.why for measure, one in told.items()},
            recent=self.recent(0.0),
        )

    def _forecast(self, told: dict[str, Foreseen]) -> LoadForecast:
        lead = next((told[measure] for measure in LEADS if measure in told), next(iter(told.values())))
        judge = told.get(REQUESTS, lead)
        return LoadForecast(
            at=lead.index * self.settings.window_s,
            window_s=self.settings.window_s,
            expected={measure: one.expected for measure, one in told.items()},
            low={measure: one.low for measure, one in told.items()},
            high={measure: one.high for measure, one in told.items()},
            level=self.settings.level,
            model=lead.model,
            why=lead.why,
            error=judge.error.get(judge.model) if judge.judged >= LEAST else None,
            judged_s=judge.judged * self.settings.window_s,
        )

    def _going_on(self) -> LoadForecast | None:
        recent = self.recent(0.0)
        if not recent.get(REQUESTS):
            return None
        width = self.settings.window_s
        # Of so many requests a few more or less are no surprise (Poisson).
        off = NormalDist().inv_cdf(self.settings.level) / math.sqrt(recent[REQUESTS] * width)
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

    # --- beside the loop

    async def _watch(self) -> None:
        """Tell each time a window is over."""
        while True:
            demand = self._demand
            assert demand is not None
            left = (demand.index + 1) * demand.window_s - wall()
            # In parts, so that a clock that is set does not leave it waiting for long.
            await asyncio.sleep(min(max(left, 0.001), demand.window_s))
            demand = self._demand
            assert demand is not None
            if demand.advance(wall()) or self._pending(demand):
                self._others.set()

    def _pending(self, demand: Demand) -> bool:
        """Whether the newest forecast is older than the window that runs: somebody else has seen the last one end."""
        told = self._told.get(self._steps)
        return told is None or any(one.index - self._steps < demand.index - 1 for one in told.values())

    def _keep_changed(self, demand: Demand, store: LoadStore) -> None:
        for window in demand.changed():
            store.record(self.name, window)

    async def _foresee(self) -> None:
        """Make the forecasts of each window, and have forecasters learn. A failure leaves what was foreseen before."""
        while True:
            await self._others.wait()
            self._others.clear()
            demand = self._demand
            assert demand is not None
            if self._store is not None:
                self._keep_changed(demand, self._store)
            series, steps = demand.series(), self._steps
            if not series:
                continue
            try:
                async with self._turn:
                    outlooks = self._of(steps, series)
                    told = await offload(lambda: _update(outlooks, series), UPDATE_COST_S)  # noqa: B023 - awaited here
                self._tell(steps, told)
            except Exception:
                log.exception("%s: its load cannot be foreseen", self.name)
                continue
            if self._learning is None or self._learning.done():
                self._learning = asyncio.create_task(self._learn(outlooks, series), name=f"learning of {self.name}")

    def _of(self, steps: int, series: dict[str, Series]) -> dict[str, Outlook]:
        outlooks = self._outlooks.pop(steps, {})
        for measure in series:
            if measure not in outlooks:
                outlooks[measure] = Outlook(self._offered(), steps, self.settings.level)
        self._outlooks[steps] = outlooks
        while len(self._outlooks) > MOST_OUTLOOKS:
            oldest = next(iter(self._outlooks))
            del self._outlooks[oldest]
            self._told.pop(oldest, None)
        return outlooks

    def _tell(self, steps: int, told: dict[str, Foreseen]) -> None:
        before = self._told.get(steps, {})
        for measure, one in told.items():
            if measure in before and before[measure].model != one.model:
                log.info("%s: %s are foreseen by %s", self.name, measure, one.why)
        self._told[steps] = told

    async def _learn(self, outlooks: dict[str, Outlook], series: dict[str, Series]) -> None:
        """Train those that are due, one after the other; each serves from the next window on."""
        learned = False
        for measure, one in series.items():
            for rolling in outlooks[measure].due(one):
                result = await offload(lambda: rolling.learn(one), LEARN_COST_S)  # noqa: B023 - awaited here
                async with self._turn:
                    rolling.take(result, one)
                learned = True
        if learned:
            self._others.set()


def _update(outlooks: dict[str, Outlook], series: dict[str, Series]) -> dict[str, Foreseen]:
    found = {measure: outlooks[measure].update(one) for measure, one in series.items()}
    return {measure: one for measure, one in found.items() if one is not None}


def _virtual() -> bool:
    try:
        return bool(getattr(asyncio.get_running_loop(), "virtual", False))
    except RuntimeError:
        return False
