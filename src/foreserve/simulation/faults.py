"""Faults by name and seed: `parse_faults("worker_death,slow_worker:factor=4", seed)`."""

from __future__ import annotations

import asyncio
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from foreserve.errors import ConfigError
from foreserve.ports import Launcher
from foreserve.simulation import fault_acts as acts
from foreserve.simulation.clients import Crowd, Leaving, Retrying
from foreserve.simulation.fault_kinds import (
    NAMES,
    ClientCancel,
    ClientRetry,
    DelayedStart,
    Fault,
    LoadSpike,
    LostHeartbeat,
    MispredictedLengths,
    RestlessScaling,
    SlowWorker,
    StaleStatistics,
    WorkerDeath,
    read_faults,
)
from foreserve.simulation.stage import FaultPlan as FaultPlan
from foreserve.simulation.stage import Happened, Stage
from foreserve.traces.drawing import Generator, generator
from foreserve.traces.row import TraceRow

MOST_TOLD: Final = 10_000
"""Happenings that are kept."""

ACTS: Final[dict[type[Fault], Callable[[Any, acts.Scene], None]]] = {
    WorkerDeath: acts.worker_death,
    RestlessScaling: acts.restless_scaling,
    SlowWorker: acts.slow_worker,
    StaleStatistics: acts.stale_statistics,
    LostHeartbeat: acts.lost_heartbeat,
    MispredictedLengths: acts.mispredicted_lengths,
}

ON_SIMULATED: Final = (SlowWorker, StaleStatistics, LostHeartbeat, DelayedStart)
"""What can befall the replicas of a simulated launcher alone."""


def parse_faults(words: str, seed: int) -> Faults:
    """The plan that `words` describe, such as `worker_death,load_spike:times=5`. Raises ConfigError with what is valid.

    The same words and seed are the same faults, in any simulation that is the same otherwise.
    """
    return Faults(read_faults(words), seed)


class Faults:
    """Implements `FaultPlan`. Each fault draws from a generator of its own, so that one more changes no other's."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        """Raises ConfigError when one is there twice that can be there once."""
        self.faults = tuple(faults)
        self.seed = seed
        self.happened: list[Happened] = []
        self.struck: Counter[str] = Counter()
        self._began = 0.0
        for once in (MispredictedLengths, ClientCancel, ClientRetry, DelayedStart):
            if sum(isinstance(fault, once) for fault in faults) > 1:
                raise ConfigError(f"--faults: {NAMES[once]} is there twice")
        self._rngs: list[Generator] = [
            generator(seed, index, zlib.crc32(NAMES[type(fault)].encode())) for index, fault in enumerate(faults)
        ]

    def launching(self, launcher: Launcher) -> None:
        """See `FaultPlan`. Raises ConfigError where its replicas are not to be tampered with as these faults do."""
        launched = getattr(launcher, "launched", None)
        for fault, rng in zip(self.faults, self._rngs, strict=True):
            if launched is None and isinstance(fault, ON_SIMULATED):
                raise ConfigError(f"fault {NAMES[type(fault)]} needs simulated replicas; {launcher} has none")
            if launched is not None and isinstance(fault, DelayedStart):
                launched.append(acts.delayed_start(fault, rng, functools.partial(self._note, NAMES[DelayedStart])))

    def rows(self, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        """See `FaultPlan`."""
        for fault, rng in zip(self.faults, self._rngs, strict=True):
            if isinstance(fault, LoadSpike):
                rows = acts.load_spike(fault, rows, rng, functools.partial(self._spike, fault))
        return rows

    def begin(self, stage: Stage) -> None:
        """See `FaultPlan`."""
        self._began = asyncio.get_running_loop().time()
        crowd = Crowd(dict(stage.twins))
        for fault, rng in zip(self.faults, self._rngs, strict=True):
            name = NAMES[type(fault)]
            note = functools.partial(self._note, name)
            if isinstance(fault, ClientCancel):
                crowd.take_up(Leaving(fault, rng, note))
            elif isinstance(fault, ClientRetry):
                crowd.take_up(Retrying(fault, rng, note, stage.drive))
            elif type(fault) in ACTS:
                ACTS[type(fault)](fault, acts.Scene(name, stage, rng, self._note))
        if crowd:
            stage.drive.clients = crowd

    def _spike(self, fault: LoadSpike, begins: float) -> None:
        """Rows are read some seconds before they come."""
        how = "as many" if fault.how == "more" else "as fast"
        what = f"{fault.times:g} times {how} for {fault.for_s:g} s"
        self._keep(Happened(at=self._began + begins, fault=NAMES[LoadSpike], to="the load", what=what))

    def _note(self, fault: str, to: str, what: str) -> None:
        self._keep(Happened(at=asyncio.get_running_loop().time(), fault=fault, to=to, what=what))

    def _keep(self, one: Happened) -> None:
        self.struck[one.fault] += 1
        if len(self.happened) < MOST_TOLD:
            self.happened.append(one)
