"""How calls of one stage are spread over its replicas: the real dispatcher, simulated replicas, the virtual clock.

A request has 2 to 12 calls that begin together, of lognormal times; it is done when the last of them is. With `key`,
`turn` and `load` each replica keeps a queue of its own, as stages behind routers do: a call goes by a hash of its key,
round robin, or to the fewest calls. `ours` keeps one queue and gives a call to a replica when that has room.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from foreserve.core import Chunk, EngineInfo, EngineLoad, EngineSpec, Finish, Outcome, Work
from foreserve.dispatch.admission import Always
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.placement import LeastRequests, RoundRobin
from foreserve.dispatch.placement_affinity import Affinity, preference
from foreserve.dispatch.rooted import EarliestRoot
from foreserve.dispatch.stream import Stream
from foreserve.fleet.inline import InlineLauncher
from foreserve.fleet.replicas import Replicas
from foreserve.ports import Decoded, Placement, Room
from foreserve.simulation import clock

SLOTS = 4
MEAN_S = 0.2
LOAD = 0.8
QUEUES = 1_000_000.0
"""What a replica with a queue of its own says that it can hold."""


class ByKey:
    """By a hash of the key, whatever the load."""

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str:
        """See `Placement`."""
        return max(rooms, key=lambda room: preference(works[0].id, room.replica)).replica


SIDES: dict[str, tuple[type[Any], bool]] = {
    "key": (ByKey, True),
    "turn": (RoundRobin, True),
    "load": (LeastRequests, True),
    "ours": (Affinity, False),
}
"""The placement, and whether replicas queue."""


class QueueingEngine:
    """Runs `slots` calls at once, each for its payload's `seconds`; those beyond wait, in the order in which they came.

    `told` is how many it says that it can hold.
    """

    def __init__(self, slots: int, told: float) -> None:
        self._free = asyncio.Semaphore(slots)
        self._told = told

    async def start(self) -> EngineInfo:
        """Ready at once."""
        return EngineInfo(batching="continuous", capacity={"slots": self._told})

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        async with self._free:
            await asyncio.sleep(work.payload["seconds"])
        yield Chunk(id=work.id, index=0, attempt=work.attempt, finish=Finish(reason="stop"))

    async def cancel(self, request_id: str) -> None:
        """Nobody leaves here."""

    async def load(self) -> EngineLoad:
        """Nobody asks."""
        return EngineLoad()

    async def close(self) -> None:
        """Nothing is held."""


class _Unread:
    def feed(self, chunk: Chunk) -> Decoded:
        return Decoded()

    def usage(self) -> dict[str, float]:
        return {}


def latencies(side: str, replicas: int, requests: int, seed: int = 0) -> list[float]:
    """From the arrival of each request to the end of its last call, in seconds."""
    return clock.run(_simulate(side, replicas, requests, seed))


async def _simulate(side: str, replicas: int, requests: int, seed: int) -> list[float]:
    kind, queues = SIDES[side]
    placement: Placement = kind()
    draw = np.random.default_rng(seed)
    counts = draw.integers(2, 13, requests)
    rate = LOAD * replicas * SLOTS / (MEAN_S * float(counts.mean()))
    gaps = draw.exponential(1 / rate, requests)
    left: dict[str, int] = {}
    began: dict[str, float] = {}
    found: list[float] = []
    over = asyncio.Event()

    def ended(outcome: Outcome) -> None:
        root = outcome.parent or ""
        left[root] -= 1
        if not left[root]:
            found.append(outcome.ended - began[root])
            if len(found) == requests:
                over.set()

    ledger = Ledger()
    dispatcher = Dispatcher(
        "stage", EarliestRoot(), placement, Always(max_waiting=1, max_wait_s=1.0), ledger, max_wait_s=1e6, settled=ended
    )
    options = {"slots": SLOTS, "told": QUEUES if queues else float(SLOTS)}
    spec = EngineSpec(factory="benchmarks.pipeline_routing:QueueingEngine", options=options)
    launcher = InlineLauncher(heartbeat_s=3600.0)
    fleet = Replicas("stage", lambda: [spec] * replicas, launcher, dispatcher, lambda info: None)
    await fleet.start()
    await asyncio.sleep(1.0)
    loop = asyncio.get_running_loop()
    sigma = 1.0
    for number, (gap, count) in enumerate(zip(gaps, counts, strict=True)):
        await asyncio.sleep(gap)
        root, now = f"q{number}", loop.time()
        left[root], began[root] = int(count), now
        for call, seconds in enumerate(draw.lognormal(np.log(MEAN_S) - sigma**2 / 2, sigma, count)):
            work = Work(
                id=f"{root}-{call}",
                payload={"seconds": float(seconds)},
                cost={"slots": 1.0},
                arrival=now,
                parent=root,
                root_arrival=now,
                affinity=f"{root}/{call // 2}",
            )
            stream = Stream(work.id, _Unread, bound=64, stall_s=1e9, on_leave=dispatcher.leave)
            dispatcher.submit(work, stream)
    await over.wait()
    ledger.check(idle=True)
    await fleet.stop(1.0)
    return found
