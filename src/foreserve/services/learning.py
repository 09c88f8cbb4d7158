"""When a service's models are trained, and what becomes of it. Serving never waits for it and never fails by it."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from foreserve.clock import offload, precise, wall
from foreserve.foresight.length_history import History
from foreserve.foresight.length_model import Model
from foreserve.plural import counted
from foreserve.samples import Samples, Trained
from foreserve.services.training import Job, Result, Tier, history_of, known, load, model_path, run
from foreserve.services.training_process import train_apart
from foreserve.settings import ForesightSettings

log = logging.getLogger(__name__)

FIRST: Final = 200
"""Answers after which the first model is trained."""

LEAST_NEW: Final = 50
NEW_SHARE: Final = 0.02
"""A model is trained anew once this many answers, or this share of all, have come since: less would change nothing."""

MOST_BACKOFF_S: Final = 3600.0
VIRTUAL_COST_S: Final = 10.0
"""What a training takes on a virtual loop."""

REMEMBERED: Final = 5000
"""Rows that the histograms are made of again after a restart: what came before has faded."""

Outcome = Literal["taken", "refused", "failed"]


class Learned(msgspec.Struct, frozen=True, eq=False):
    """What serves from now on: the models by tier, and the histograms where they were made anew."""

    models: dict[Tier, Model]
    history: History | None = None


class Learner:
    """Trains one service's models whenever enough has ended. `install` is given what serves from then on.

    `heard` is told of each training: what became of it and how many seconds it took. Models are kept in `folder`;
    without one they are on disk while they are trained alone.
    """

    def __init__(
        self,
        service: str,
        settings: ForesightSettings,
        samples: Samples,
        folder: Path | None,
        tiers: tuple[Tier, ...],
        install: Callable[[Learned], None],
        heard: Callable[[Outcome, float], None],
    ) -> None:
        self.service = service
        self._settings = settings
        self._samples = samples
        self._folder = folder
        self._tiers = tiers
        self._install = install
        self._heard = heard
        self._new = 0
        self._wanted = FIRST
        self._news = asyncio.Event()
        self._models: dict[Tier, Model] = {}
        self._trained: Trained | None = None
        self._first = True
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what was learned before, then train in the background when it is time.

        What cannot be read is logged and tried again later.
        """
        try:
            await self._take_up()
            ready = True
        except Exception:
            log.exception("%s: what was learned before cannot be read; it is tried again later", self.service)
            ready = False
        self._task = asyncio.create_task(self._run(ready), name=f"learning of {self.service}")

    async def _take_up(self) -> None:
        at = wall()

        def before() -> tuple[Learned, int, int, Trained | None]:
            self._samples.expire(at)
            rows = self._samples.read(self.service)
            trained = self._samples.trained(self.service)
            found = {} if self._folder is None else self._load(self._folder)
            new = sum(row.n > trained.newest for row in rows) if trained is not None and found else len(rows)
            return Learned(found, history_of(known(rows[-REMEMBERED:]))), len(rows), new, trained

        learned, rows, self._new, self._trained = await offload(before)
        self._wanted = _wanted(rows) if learned.models else FIRST
        self._put(learned)
        if learned.models or rows:
            models = ", ".join(learned.models) or "none"
            log.info("%s: %s remembered, models: %s", self.service, counted(rows, "answer"), models)
        self._first = not learned.models or (self._trained is not None and self._trained.stale)
        self.ended(0)

    def ended(self, answers: int = 1) -> None:
        """So many more answers have been kept to learn from."""
        self._new += answers
        if self._tiers and self._new >= self._wanted:
            self._news.set()

    async def stop(self) -> None:
        """End a training that runs, with its process. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, ready: bool) -> None:
        """Wait for enough news, train, and then not again for `train_s`; after failures for longer."""
        failures = 0 if ready else 1
        while True:
            if failures or not self._first:
                train_s = self._settings.train_s
                await asyncio.sleep(max(train_s, min(train_s * 2.0**failures, MOST_BACKOFF_S)))
            try:
                if not ready:
                    await self._take_up()
                    ready, failures = True, 0
                    continue
                await self._due()
                failures = 0 if await self._try() else min(failures + 1, 16)
            except Exception:
                log.exception("%s: learning failed; answers are foreseen as before", self.service)
                failures = min(failures + 1, 16)

    async def _try(self) -> bool:
        """One training, of which is told, however it ends. Whether it did not fail."""
        self._first = False
        began = precise()
        outcome: Outcome = "failed"
        try:
            outcome = await self.train()
        except Exception:
            log.exception("%s: a training failed; answers are foreseen as before", self.service)
        self._heard(outcome, precise() - began)
        return outcome != "failed"

    async def _due(self) -> None:
        """Until enough has ended, or what was learned has to be forgotten. Takes up what others have taught."""
        while not self._news.is_set():
            trained = await offload(lambda: self._samples.trained(self.service))
            if trained is not None and trained.stale:
                return
            if trained != self._trained:
                await self._taught(trained)
            try:
                async with asyncio.timeout(self._settings.train_s):
                    await self._news.wait()
            except TimeoutError:
                await self._expire()

    async def _taught(self, trained: Trained | None) -> None:
        """Models have come from elsewhere, with answers that this server has not seen."""
        folder = self._folder
        if folder is not None:
            models = await offload(lambda: self._load(folder))
            if self._differ(models):
                history = await offload(lambda: history_of(known(self._samples.read(self.service)[-REMEMBERED:])))
                self._put(Learned(models, history))
        self._trained = trained

    async def _expire(self) -> None:
        at = wall()
        await offload(lambda: self._samples.expire(at))

    async def train(self) -> Outcome:
        """Train now and put in place what is better. Raises what a training may."""
        self._news.clear()
        new, self._new = self._new, 0
        at = wall()
        try:
            with self._place() as folder:
                job = await offload(lambda: self._job(folder, at))
                result = await self._run_apart(job)
                models = await offload(lambda: self._load(folder))
        except BaseException:
            self.ended(new)
            raise
        for judged in result.judged:
            log.info("%s: the %s model of %d answers: %s", self.service, judged.tier, judged.rows, judged.why)
        taken = any(judged.taken for judged in result.judged)
        stale = job.trained is not None and job.trained.stale
        rows, history = await offload(lambda: self._note(job, result.newest, at, taken or stale, stale))
        self._wanted = _wanted(rows)
        if stale or self._differ(models):  # also where another process has taught them
            self._put(Learned(models, history))
        return "taken" if taken else "refused"

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """Where models are for a training."""
        if self._folder is not None:
            yield self._folder
            return
        with tempfile.TemporaryDirectory(prefix="foreserve-learning-") as name:
            yield Path(name)

    def _job(self, folder: Path, at: float) -> Job:
        self._samples.expire(at)
        path = self._samples.path
        if self._folder is None:
            for tier, model in self._models.items():
                place = model_path(folder, self.service, tier)
                place.parent.mkdir(parents=True, exist_ok=True)
                model.save(place)
        return Job(
            service=self.service,
            folder=str(folder),
            features=self._settings.features,
            tiers=self._tiers,
            most_rows=self._settings.keep_rows,
            store=None if path is None else str(path),
            rows=self._samples.read(self.service) if path is None else (),
            trained=self._samples.trained(self.service),
        )

    async def _run_apart(self, job: Job) -> Result:
        if getattr(asyncio.get_running_loop(), "virtual", False):
            return await offload(lambda: run(job), VIRTUAL_COST_S)
        if not job.tiers:  # nothing to train, only models of before to delete
            return await offload(lambda: run(job))
        return await train_apart(job)

    def _note(self, job: Job, newest: int, at: float, changed: bool, stale: bool) -> tuple[int, History | None]:
        """Keep what is known of the new model. How many rows there are; the histograms where they are made anew."""
        if changed:
            forgotten = 0 if job.trained is None else job.trained.forgotten
            self._samples.set_trained(self.service, Trained(at=at, newest=newest, forgotten=forgotten))
        self._trained = self._samples.trained(self.service) if changed else job.trained
        rows = self._samples.count(self.service)
        return rows, history_of(known(self._samples.read(self.service)[-REMEMBERED:])) if stale else None

    def _load(self, folder: Path) -> dict[Tier, Model]:
        models = {tier: load(folder, self.service, tier) for tier in self._tiers}
        return {tier: model for tier, model in models.items() if model is not None}

    def _differ(self, models: dict[Tier, Model]) -> bool:
        return any(not same(models.get(tier), self._models.get(tier)) for tier in self._tiers)

    def _put(self, learned: Learned) -> None:
        self._models = learned.models
        self._install(learned)


def same(one: Model | None, other: Model | None) -> bool:
    """Whether two models, or none, are one and the same."""
    return one is other or (one is not None and other is not None and one.digest == other.digest)


def _wanted(rows: int) -> int:
    """New answers after which to train again."""
    return max(LEAST_NEW, int(rows * NEW_SHARE))
