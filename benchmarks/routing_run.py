"""One run of the routing benchmark: a fleet of simulated engines on the virtual clock, one placement, one load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.routing_load import Case
from foreserve.core import Chunk, EngineSpec, Outcome, Work
from foreserve.dispatch.admission import Always
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.ordering import ResponseRatio
from foreserve.dispatch.placement import LeastRequests, LeastTokens, RoundRobin
from foreserve.dispatch.placement_anticipated import Anticipated, PrefixAffinity
from foreserve.dispatch.stream import Stream
from foreserve.engines.generation import Sized
from foreserve.engines.profile import EngineProfile
from foreserve.fleet.replicas import Replicas
from foreserve.foresight.service_time import RequestTime
from foreserve.ports import BatchPolicy, Decoded, Placement, Room
from foreserve.services.foreseen import Foreseen, priced
from foreserve.simulation.clock import run
from foreserve.simulation.launcher import SimulatedLauncher
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.replica import SimulatedConnection
from foreserve.simulation.twin import ENGINE

TTFT_S, PER_TOKEN_S = 2.0, 0.25
"""The objectives of PreServe's evaluation: a first token within this, all of it within so much for each token."""

AT_ONCE = 4096
"""Slots that a server is given where requests go to it as they come."""

WARM = 0.1
"""Of the requests, the first, are not counted."""


class LeastUtilised:
    """The replica whose KV cache is the least used by its own report, a second old at most; by count where equal."""

    by_rank = False

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        """See `Placement`."""
        return min(rooms, key=self._used).replica

    def _used(self, room: Room) -> tuple[float, int, str]:
        used = 0.0 if room.load is None or room.load.kv_fraction is None else room.load.kv_fraction
        return used, room.running, room.replica


class Unaffine(Anticipated):
    """Ours, without what it knows of prompts' beginnings."""

    def near(self, works: Sequence[Work]) -> Sequence[str]:
        """Nobody."""
        return ()

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        """See `Placement`."""
        return super().place([msgspec.structs.replace(work, prefix=None) for work in works], rooms, now)

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> int:
        """Nothing is remembered."""
        return 0


PLACEMENTS: Mapping[str, Callable[[], Placement]] = {
    "round_robin": RoundRobin,
    "least_requests": LeastRequests,
    "least_utilised": LeastUtilised,
    "least_tokens": LeastTokens,
    "prefix_affinity": PrefixAffinity,
    "anticipated": Anticipated,
    "anticipated, no prefixes": Unaffine,
}
POLICIES: Mapping[str, Callable[[], BatchPolicy]] = {"fcfs": FirstCome, "hrrn": ResponseRatio}


class Ran(msgspec.Struct, frozen=True, eq=False):
    """What a run gave: seconds, shares, counts. `normalised` is the time of a whole answer by its tokens.

    `hit_rate` is the share of prompts' tokens that engines found in their caches; `cpu_s` is what the run took here.
    `ttft` and `normalised` are of each request that is counted.
    """

    ttft: NDArray[np.float64]
    normalised: NDArray[np.float64]
    ttft_p99: float
    ttft_p50: float
    ttft_mean: float
    normalised_p99: float
    normalised_mean: float
    attainment: float
    e2e_mean: float
    preemptions: int
    hit_rate: float
    cpu_s: float


class _Unread:
    def feed(self, chunk: Chunk) -> Decoded:
        return Decoded()

    def usage(self) -> dict[str, float]:
        return {}


def simulate(
    placement: Placement,
    policy: BatchPolicy,
    cases: Sequence[Case],
    at: Sequence[float],
    replicas: int,
    profile: EngineProfile,
    *,
    queued: bool,
) -> Ran:
    """Each case at its time. `queued`: in our queue until a replica has room; else they go to a server as they come.

    A server queues what it has no room for, first come first, and preempts when its cache is full.
    """
    began = time.process_time()
    outcomes, preemptions = run(_simulate(placement, policy, cases, at, replicas, profile, queued))
    return _summed(outcomes, cases, preemptions, time.process_time() - began)


async def _simulate(
    placement: Placement,
    policy: BatchPolicy,
    cases: Sequence[Case],
    at: Sequence[float],
    replicas: int,
    profile: EngineProfile,
    queued: bool,
) -> tuple[list[Outcome], int]:
    loop = asyncio.get_running_loop()
    oracle, ledger, pace = Oracle(), Ledger(), RequestTime()
    outcomes: list[Outcome] = []
    over = asyncio.Event()

    def ended(outcome: Outcome) -> None:
        outcomes.append(outcome)
        oracle.forget(outcome.id)
        case = cases[int(outcome.id)]
        if outcome.started is not None:
            pace.learn(case.prompt, case.output, outcome.ended - outcome.started)
        if len(outcomes) == len(cases):
            over.set()

    dispatcher = Dispatcher("s", policy, placement, Always(1, 1), ledger, max_wait_s=1e9, settled=ended)
    options = {"profile": profile, "lengths": oracle, "capacity": None if queued else {"slots": AT_ONCE}}
    spec = EngineSpec(factory=ENGINE, options=options)
    launcher = SimulatedLauncher()
    connections: list[SimulatedConnection] = []
    launcher.launched.append(connections.append)
    fleet = Replicas("s", lambda: [spec] * replicas, launcher, dispatcher, lambda info: None)
    await fleet.start()
    await asyncio.sleep(1.0)
    assert len(fleet.ready) == replicas
    begin = loop.time()

    def come(number: int) -> None:
        case = cases[number]
        work = _work(str(number), case, pace, profile, loop.time())
        oracle.tell(work.id, case.output)
        dispatcher.submit(work, Stream(work.id, _Unread, bound=64, stall_s=1e9, on_leave=dispatcher.leave))
        if number + 1 < len(cases):
            loop.call_at(begin + at[number + 1], come, number + 1)

    loop.call_at(begin + at[0], come, 0)
    await over.wait()
    ledger.check(idle=True)
    for replica in fleet.ready:
        room = replica.room()
        assert room is not None
        assert (room.tokens, room.unread, room.running) == (0, None, 0), "every account is back where it was"
    preemptions = sum(connection.preemptions for connection in connections)
    await fleet.stop(1.0)
    return outcomes, preemptions


def _work(request_id: str, case: Case, pace: RequestTime, profile: EngineProfile, now: float) -> Work:
    most = profile.context_tokens - case.prompt
    price = priced(Foreseen(case.prompt, most, case.predicted), {"slots": 1.0}, pace, worst=False, ramps=True)
    prefix = case.prefix
    return Work(
        id=request_id,
        payload=Sized(
            prompt_tokens=case.prompt,
            max_tokens=most,
            prefix=case.blocks,
            block_tokens=512 if prefix is None else prefix.block_tokens,
        ),
        cost=price.cost,
        forecast=price.forecast,
        ramp=price.ramp,
        prefix=prefix,
        arrival=now,
    )


def _summed(outcomes: Sequence[Outcome], cases: Sequence[Case], preemptions: int, cpu_s: float) -> Ran:
    ttft, whole = np.zeros(len(cases)), np.zeros(len(cases))
    cached = 0.0
    for outcome in outcomes:
        number = int(outcome.id)
        assert outcome.first is not None
        assert outcome.usage["output_tokens"] == cases[number].output
        ttft[number] = outcome.first - outcome.arrival
        whole[number] = outcome.ended - outcome.arrival
        cached += outcome.usage.get("cached_tokens", 0.0)
    counted = slice(int(WARM * len(cases)), None)
    tokens = np.array([case.output for case in cases])[counted]
    ttft, whole = ttft[counted], whole[counted]
    normalised = whole / tokens
    return Ran(
        ttft=ttft,
        normalised=normalised,
        ttft_p99=float(np.percentile(ttft, 99)),
        ttft_p50=float(np.percentile(ttft, 50)),
        ttft_mean=float(ttft.mean()),
        normalised_p99=float(np.percentile(normalised, 99)),
        normalised_mean=float(normalised.mean()),
        attainment=float(((ttft <= TTFT_S) & (normalised <= PER_TOKEN_S)).mean()),
        e2e_mean=float(whole.mean()),
        preemptions=preemptions,
        hit_rate=cached / sum(case.prompt for case in cases),
        cpu_s=cpu_s,
    )
