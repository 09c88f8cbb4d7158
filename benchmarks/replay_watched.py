"""Replaying engines for looking closer: one that notes every step, and one that only takes a profile's time.

Their workers need the repository's root in `PYTHONPATH`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks import replay
from benchmarks.replay import ReplayedOpenVINO
from foreserve.core import Chunk, EngineInfo, Work
from foreserve.engines.answer import generate_of
from foreserve.engines.simulated import SimulatedEngine

STEPPED_FACTORY: Final = "benchmarks.replay_watched:SteppedOpenVINO"
SIMULATED_FACTORY: Final = "benchmarks.replay_watched:ReplayedSimulated"
"""For `EngineSpec.factory`."""


class Step(msgspec.Struct, frozen=True):
    """One step of the engine. Times are of one clock, seconds; before it `decoding` had their first token, `fresh` not.

    `context` is what the former hold together, `waiting` the latter's prompt tokens. `kv` is in use after it (0 to 1).
    """

    began: float
    ended: float
    decoding: int
    context: int
    fresh: int
    waiting: int
    kv: float


class SteppedOpenVINO(ReplayedOpenVINO):
    """Writes a `Step` for each step as a JSON line to the file `steps`, for comparing a simulated engine with it."""

    def __init__(self, *, steps: str, **options: Any) -> None:
        super().__init__(**options)
        self._steps_file = Path(steps)
        self._steps = bytearray()

    def _build(self) -> Any:
        return _Watched(super()._build(), self)

    def begun(self) -> tuple[int, int, int, int]:
        """Before a step: how many decode, what they hold, how many are fresh, their prompt tokens."""
        live = [one for one in self._running.values() if not one.answer.ended]
        decoding = [one for one in live if one.ids]
        held = sum(len(one.payload.prompt) + len(one.ids) for one in decoding)
        fresh = [len(one.payload.prompt) for one in live if not one.ids]
        return len(decoding), held, len(fresh), sum(fresh)

    def note(self, step: Step) -> None:
        """One is over."""
        self._steps += msgspec.json.encode(step) + b"\n"

    async def close(self) -> None:
        """See `Engine`."""
        self._steps_file.write_bytes(self._steps)
        await super().close()


class _Watched:
    """A pipeline whose steps are timed."""

    def __init__(self, pipeline: Any, engine: SteppedOpenVINO) -> None:
        self._pipeline = pipeline
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def step(self) -> None:
        """As the pipeline's."""
        before = self._engine.begun()
        began = time.perf_counter()
        self._pipeline.step()
        kv = self._pipeline.get_metrics().cache_usage / 100.0
        self._engine.note(Step(began, time.perf_counter(), *before, kv))


class ReplayedSimulated(SimulatedEngine):
    """Takes the time that `profile` (a file) says, in a real worker and in real time; lengths are those of `truths`.

    Beside a simulation from the same profile it shows what else differs between live and simulated. The model's own
    options are ignored.
    """

    def __init__(self, *, truths: str, profile: str, **_: Any) -> None:
        super().__init__(profile=profile, emit_every=1)
        self._truths_file = Path(truths)
        self._truths: dict[str, int] = {}

    async def start(self) -> EngineInfo:
        """See `Engine`."""
        self._truths = replay.read(self._truths_file)
        return await super().start()

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        true = replay.replayed(work, self._truths)
        if true is None:
            yield replay.untold(work)
            return
        limit = generate_of(work).max_tokens
        async for chunk in super().run(true, plan):
            yield replay.as_ended(chunk, limit)
