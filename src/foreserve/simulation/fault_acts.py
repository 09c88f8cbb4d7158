"""What each fault does to a running simulation, by a seeded generator of its own."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import msgspec
from numpy.random import Generator  # noqa: TID251 - the type of the generator that is passed in

from foreserve.fleet.replica import Replica, State
from foreserve.fleet.watch import LOOKS
from foreserve.services.foreseen import Foreseen
from foreserve.simulation.fault_kinds import (
    DelayedStart,
    LoadSpike,
    LostHeartbeat,
    MispredictedLengths,
    RestlessScaling,
    SlowWorker,
    StaleStatistics,
    WorkerDeath,
)
from foreserve.simulation.stage import Stage
from foreserve.traces.row import TraceRow

START_S = 5.0
"""Within so many seconds of its launch a successor is killed that is to die in its start."""


@runtime_checkable
class Simulated(Protocol):
    """A connection to a simulated replica, as far as faults are concerned (see `simulation.launcher`)."""

    name: str

    def kill(self) -> None: ...
    def slow(self, factor: float) -> None: ...
    def mute(self, on: bool) -> None: ...
    def freeze(self, on: bool) -> None: ...
    def delay(self, seconds: float) -> None: ...


class Scene:
    """One fault at work: its generator, its timers, and whom it can befall. Over when the simulation is."""

    def __init__(self, name: str, stage: Stage, rng: Generator, note: Callable[[str, str, str], None]) -> None:
        self.stage = stage
        self.rng = rng
        self._name = name
        self._note = note
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._order = 0
        self._undo: dict[str, Callable[[], None]] = {}
        self._over = False
        stage.drive.over.append(self._end)

    def note(self, to: str, what: str) -> None:
        """Something has happened."""
        self._note(self._name, to, what)

    def later(self, seconds: float, act: Callable[..., None], *args: Any) -> None:
        """Do it then, unless all is over by then."""
        if self._over:
            return
        self._order += 1
        loop = asyncio.get_running_loop()
        self._timers[self._order] = loop.call_later(seconds, self._do, self._order, act, args)

    def _do(self, order: int, act: Callable[..., None], args: tuple[Any, ...]) -> None:
        del self._timers[order]
        act(*args)

    def every(self, mean_s: float, act: Callable[[], None]) -> None:
        """Again and again, at random."""

        def strike() -> None:
            act()
            self.every(mean_s, act)

        self.later(self.rng.exponential(mean_s), strike)

    def until_over(self, replica: Replica, back: Callable[[], None]) -> None:
        """Undo what was done to a replica at the end."""
        self._undo[replica.name] = back

    def for_a_while(self, replica: Replica, seconds: float, back: Callable[[], None]) -> None:
        """Undo what was done to a replica after so long, or at the end."""
        self.until_over(replica, back)
        self.later(seconds, self._back, replica.name)

    def _back(self, name: str) -> None:
        back = self._undo.pop(name, None)
        if back is not None:
            back()

    def _end(self) -> None:
        self._over = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for name in list(self._undo):
            self._back(name)

    def alive(self) -> list[Replica]:
        """Replicas that start or work, in order of services and seats."""
        services = self.stage.running.services.values()
        return [replica for each in services for replica in each.replicas.all if replica.state is not State.GONE]

    def one(self) -> Replica | None:
        """One that works and has nothing of this fault yet."""
        ready = [one for one in self.alive() if one.state is State.READY and one.name not in self._undo]
        return ready[int(self.rng.integers(len(ready)))] if ready else None

    def hands_on(self, replica: Replica) -> Simulated:
        """Its connection, which is a simulated launcher's."""
        assert isinstance(replica.connection, Simulated)
        return replica.connection


# --- replicas


def worker_death(fault: WorkerDeath, scene: Scene) -> None:
    """See `WorkerDeath`."""

    def strike() -> None:
        alive = scene.alive()
        count = min(int(scene.rng.integers(1, fault.at_once + 1)), len(alive))
        for index in sorted(scene.rng.permutation(len(alive))[:count]):
            _kill(scene, alive[index])

    def launched(connection: Simulated) -> None:
        dies, after = scene.rng.random() < fault.in_start, scene.rng.uniform(0.0, START_S)
        if dies:
            scene.note(connection.name, f"is to be killed {after:.2f} s after its launch")
            scene.later(after, connection.kill)

    scene.every(fault.every_s, strike)
    # Only replicas of a simulated launcher can be met as they start.
    getattr(scene.stage.launcher, "launched", []).append(launched)


def _kill(scene: Scene, replica: Replica) -> None:
    if replica.connection is not None:
        scene.note(replica.name, f"killed with {len(replica.held)} requests")
        replica.connection.kill()


def restless_scaling(fault: RestlessScaling, scene: Scene) -> None:
    """See `RestlessScaling`."""

    def strike() -> None:
        for service in scene.stage.running.services.values():
            least, most = service.settings.bounds
            if least == most or service.kind.name == "upstream":
                continue
            busy = service.dispatcher.waiting or service.dispatcher.running
            wanted = int(scene.rng.integers(max(least, 1 if busy else 0), most + 1))
            scene.note(service.name, f"{service.replicas.wanted} replicas are made {wanted}")
            service.replicas.scale(wanted)

    scene.every(fault.every_s, strike)


def slow_worker(fault: SlowWorker, scene: Scene) -> None:
    """See `SlowWorker`."""

    def strike() -> None:
        if (replica := scene.one()) is not None:
            connection = scene.hands_on(replica)
            scene.note(replica.name, f"{fault.factor:g} times as slow for {fault.for_s:g} s")
            connection.slow(fault.factor)
            scene.for_a_while(replica, fault.for_s, functools.partial(connection.slow, 1.0))

    scene.every(fault.every_s, strike)


def stale_statistics(fault: StaleStatistics, scene: Scene) -> None:
    """See `StaleStatistics`."""

    def strike() -> None:
        if (replica := scene.one()) is not None:
            connection = scene.hands_on(replica)
            scene.note(replica.name, f"repeats its load for {fault.for_s:g} s")
            connection.freeze(True)
            scene.for_a_while(replica, fault.for_s, functools.partial(connection.freeze, False))

    scene.every(fault.every_s, strike)


def lost_heartbeat(fault: LostHeartbeat, scene: Scene) -> None:
    """See `LostHeartbeat`. A silence that is too long ends with the replica."""

    def strike() -> None:
        if (replica := scene.one()) is None:
            return
        connection = scene.hands_on(replica)
        service = scene.stage.running.services[replica.name.rpartition("/")[0]]
        # Silence is counted in looks, the first of which may come at once: a look less is surely in time.
        limit = service.settings.liveness_s * (LOOKS - 2) / LOOKS
        in_time, seconds = scene.rng.random() < fault.in_time, scene.rng.uniform(0.1, 1.0) * limit
        connection.mute(True)
        if in_time:
            scene.note(replica.name, f"silent for {seconds:.1f} s")
            scene.for_a_while(replica, seconds, functools.partial(connection.mute, False))
        else:
            scene.note(replica.name, "silent until it is given up")
            scene.until_over(replica, functools.partial(connection.mute, False))

    scene.every(fault.every_s, strike)


def delayed_start(fault: DelayedStart, rng: Generator, note: Callable[[str, str], None]) -> Callable[[Simulated], None]:
    """See `DelayedStart`. What a launcher calls with each connection before it starts."""

    def launched(connection: Simulated) -> None:
        late, by = rng.random() < fault.share, rng.exponential(fault.by_s)
        if late:
            note(connection.name, f"starts {by:.1f} s late")
            connection.delay(by)

    return launched


# --- what is foreseen


def mispredicted_lengths(fault: MispredictedLengths, scene: Scene) -> None:
    """See `MispredictedLengths`."""

    noted = False

    def distort(about: Foreseen) -> Foreseen:
        nonlocal noted
        drawn, absurd, short = scene.rng.standard_normal(), scene.rng.random(), scene.rng.random()
        length, most = about.length, float(max(about.most, 1))
        if length.source == "limit":
            return about
        if not noted:
            noted = True
            scene.note(
                "all that is foreseen", f"lengths are {fault.bias:g} times what they were, noise {fault.noise:g}"
            )

        def wrong(tokens: float) -> float:
            if absurd < fault.absurd:
                return 1.0 if short < 0.5 else most
            return min(max(tokens * fault.bias * math.exp(fault.noise * drawn), 1.0), most)

        changed = msgspec.structs.replace(
            length, mean=wrong(length.mean), p50=wrong(length.p50), p80=wrong(length.p80), p95=wrong(length.p95)
        )
        return msgspec.structs.replace(about, length=changed)

    for twin in scene.stage.twins.values():
        twin.distort = distort


# --- the load


def load_spike(
    fault: LoadSpike, rows: Iterator[TraceRow], rng: Generator, note: Callable[[float], None]
) -> Iterator[TraceRow]:
    """See `LoadSpike`. What comes in addition comes between its original and the next row, so that order is kept.

    `note` hears of each spike that meets any row, with the second of the trace at which it begins.
    """
    begins = rng.exponential(fault.every_s)
    noted = -1.0

    def met(row: TraceRow) -> None:
        nonlocal noted
        if noted < begins <= row.arrival < begins + fault.for_s:
            noted = begins
            note(begins)

    held: TraceRow | None = None
    for row in rows:
        if held is not None:
            met(held)
            yield from _spiked(fault, held, row.arrival, begins, rng)
            while held.arrival >= begins + fault.for_s:
                begins += fault.for_s + rng.exponential(fault.every_s)
        held = row
    if held is not None:
        met(held)
        yield from _spiked(fault, held, held.arrival, begins, rng)


def _spiked(fault: LoadSpike, row: TraceRow, until: float, begins: float, rng: Generator) -> Iterator[TraceRow]:
    if not begins <= row.arrival < begins + fault.for_s:
        yield row
    elif fault.how == "sooner":
        yield msgspec.structs.replace(row, arrival=begins + (row.arrival - begins) / fault.times)
    else:
        whole = int(fault.times)
        copies = whole + (rng.random() < fault.times - whole)
        later = [row.arrival + rng.random() * (until - row.arrival) for _ in range(copies - 1)]
        if copies:
            yield row
        for arrival in sorted(later):
            yield msgspec.structs.replace(row, arrival=arrival)
