"""An encoder service whose engine sleeps as long as a profile says: the same dispatcher and policies, virtual time.

What it would have answered is drawn beforehand for each request: right under every setting whose accuracy is above the
request's own difficulty.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import numpy as np

from foreserve.core import (
    Chunk,
    EngineInfo,
    EngineLoad,
    EngineSpec,
    Finish,
    Forecast,
    Length,
    Outcome,
    Price,
    Request,
    Work,
)
from foreserve.elastic.profile import Profile, interpolated
from foreserve.engines.answer import Numbered
from foreserve.ports import Decoded
from foreserve.services.served import Progress
from foreserve.settings import EncoderSettings

NOISE = 0.05
"""Of a pass's time, log-normal."""

_NO_TOKENS = Length(mean=1.0, p50=1.0, p80=1.0, p95=1.0, source="batches")


class Asked(msgspec.Struct, frozen=True):
    """A payload: the task that it is of."""

    task: str


class Answer(msgspec.Struct, frozen=True):
    """Which setting answered."""

    setting: str


class SleepingEngine:
    """Batches take the profile's time, and loading another model `load_s`: a setting of `models` is one by itself.

    Without a plan a batch runs under the `usual` setting.
    """

    def __init__(
        self, profile: Any, size: int, seed: int, load_s: float = 0.0, models: Sequence[str] = (), usual: str = "plain"
    ) -> None:
        self._profile = msgspec.convert(profile, Profile)
        self._size = size
        self._draw = np.random.default_rng(seed)
        self._load_s = load_s
        self._models = models
        self._usual = usual
        self._loaded: str | None = None

    async def start(self) -> EngineInfo:
        return EngineInfo(batching="static", capacity={"slots": float(self._size)})

    def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        raise NotImplementedError

    async def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncIterator[Sequence[Chunk]]:
        setting = plan or self._usual
        if setting in self._models and setting != self._loaded:
            if self._loaded is not None:
                await asyncio.sleep(self._load_s)
            self._loaded = setting
        length = max(int(work.cost.get("tokens", 1)) for work in works)
        seconds = interpolated(self._profile, self._profile.seconds[setting], len(works), length)
        await asyncio.sleep(seconds * float(np.exp(self._draw.normal(0.0, NOISE))))
        yield [Numbered(work).chunk(Answer(setting), finish=Finish(reason="stop")) for work in works]

    async def cancel(self, request_id: str) -> None:
        """It runs to its end."""

    async def load(self) -> EngineLoad:
        return EngineLoad()

    async def close(self) -> None:
        """Nothing is held."""


class Stand:
    """The kind. `plans` are the settings that requests of each task allow, with their accuracies."""

    name = "encoder"
    idempotent = True
    policy = "elastic"

    def __init__(
        self, settings: EncoderSettings, profile: Profile, plans: dict[str, dict[str, float]], seed: int, **engine: Any
    ) -> None:
        self.settings = settings
        self._plans = plans
        self._seconds = {
            task: [interpolated(profile, profile.seconds[each], 1, 1) for each in allowed]
            for task, allowed in plans.items()
        }
        options = {"profile": msgspec.to_builtins(profile), "size": settings.max_running, "seed": seed, **engine}
        self._spec = EngineSpec(factory="benchmarks.elastic_stand:SleepingEngine", options=options)

    def prepare(self, progress: Progress | None) -> None:
        """Nothing is needed."""

    def engines(self) -> list[EngineSpec]:
        return [self._spec] * self.settings.bounds[1]

    def price(self, request: Request) -> Price:
        forecast = Forecast(
            input_tokens=0,
            output=_NO_TOKENS,
            most_tokens=0,
            seconds=max(self._seconds[request.payload.task]),
            least_seconds=min(self._seconds[request.payload.task]),
        )
        return Price(cost={"slots": 1.0, "tokens": 1.0}, forecast=forecast, plans=self._plans[request.payload.task])

    def settled(self, outcome: Outcome) -> None:
        """Learns nothing."""

    def ready(self, info: EngineInfo) -> None:
        """Nothing is told."""

    def decoder(self, work: Work) -> Heard:
        return Heard()

    def events_bound(self, payload: Any) -> int:
        return 2


class Heard:
    """The chunk's data is the event."""

    def feed(self, chunk: Chunk) -> Decoded:
        return Decoded(events=(chunk.data,))

    def usage(self) -> dict[str, float]:
        return {}
