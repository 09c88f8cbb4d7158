"""What placing a request costs a gateway: the decision among many replicas, and all accounts kept of it until it ends.

The replicas are the fleet's own, each with a look-ahead map of what it holds; their workers say what real ones would
and do nothing. Time is the process's own, so that other work on the machine counts little.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Forecast, Length, Ramp, Work
from foreserve.dispatch.rooms import Rooms
from foreserve.fleet.replica import Replica
from foreserve.loadgen.arrivals import generator
from foreserve.messages import Chunks, Heartbeat, Ready, ToWorker
from foreserve.ports import Placement, Room, Shortlisted, ranked
from foreserve.simulation.clock import run

RUNNING = 48
"""Requests on each replica."""

GAP_S = 0.002
BEAT_S = 1.0
_FINISH = Finish(reason="stop", usage={"output_tokens": 200.0})


class _Silent:
    """A connection to nobody."""

    pid: int | None = None

    def send(self, message: ToWorker) -> None: ...
    async def stop(self, grace_s: float) -> None: ...
    def kill(self) -> None: ...


def works(lengths: Sequence[tuple[int, Length]], count: int, seed: int) -> list[Work]:
    """Requests of these prompts and predictions, drawn with `seed`."""
    made = []
    for number, at in enumerate(generator(seed).integers(len(lengths), size=count).tolist()):
        prompt, length = lengths[at]
        steps = int(np.ceil(length.p80))
        made.append(
            Work(
                id=f"q{number}",
                payload=None,
                cost={"slots": 1.0, "kv_tokens": float(prompt + steps)},
                arrival=number * GAP_S,
                forecast=Forecast(input_tokens=prompt, output=length, most_tokens=2048, seconds=5.0),
                ramp=Ramp(resource="kv_tokens", base=prompt, steps=steps, most=prompt + 2048),
            )
        )
    return made


def decision_us(
    placement: Placement, lengths: Sequence[tuple[int, Length]], replicas: int, count: int, repeat: int
) -> list[float]:
    """Microseconds of processor time for each request, `repeat` means of `count`."""
    return run(_decisions(placement, works(lengths, RUNNING * replicas + count * repeat, 0), replicas, count, repeat))


async def _decisions(
    placement: Placement, every: Sequence[Work], replicas: int, count: int, repeat: int
) -> list[float]:
    fleet = _fleet(replicas)
    listed = placement if isinstance(placement, Shortlisted) else None
    order = ranked(placement) or listed
    rooms = Rooms(None if order is None else order.rank)
    for replica in fleet.values():
        rooms.attach(replica)
    running: deque[tuple[Replica, Work]] = deque()
    coming = iter(every)
    beat = 0.0

    def begin(work: Work, now: float) -> None:
        name, cached = _place(placement, listed, rooms, work, now)
        replica = fleet[name]
        if cached:
            replica.run([work], None, cached)
        else:
            replica.run([work], None)
        rooms.changed(name)
        running.append((replica, work))

    def answer(replica: Replica, work: Work) -> None:
        replica.heard(Chunks((Chunk(id=work.id, index=0, data=True),)))
        rooms.changed(replica.name)

    def end(replica: Replica, work: Work) -> None:
        replica.heard(Chunks((Chunk(id=work.id, index=1, finish=_FINISH),)))
        rooms.changed(replica.name)

    for work, _ in zip(coming, range(RUNNING * replicas), strict=False):
        begin(work, asyncio.get_running_loop().time())
        answer(*running[-1])
    means = []
    for _ in range(repeat):
        gc.collect()
        spent = 0.0
        for work, _ in zip(coming, range(count), strict=False):
            await asyncio.sleep(GAP_S)
            now = asyncio.get_running_loop().time()
            if now >= beat:
                beat = now + BEAT_S
                for replica in fleet.values():
                    replica.heard(Heartbeat(EngineLoad(running=len(replica.held), waiting=0, last_step_s=0.03)))
            began = time.process_time()
            begin(work, now)
            answer(*running[-1])
            end(*running.popleft())
            spent += time.process_time() - began
        means.append(spent / count * 1e6)
    return means


def _fleet(replicas: int) -> dict[str, Replica]:
    """Ready replicas of the kind that bound their KV cache themselves."""
    info = EngineInfo(batching="continuous", capacity={"slots": 4096.0}, holds={"kv_tokens": 36_896.0})
    fleet = {}
    for number in range(replicas):
        replica = Replica(f"s/{number}.1", on_ready=lambda _: None, on_chunks=lambda *_: None, on_gone=lambda _: None)
        replica.connect(_Silent())
        replica.heard(Ready(info, 1))
        fleet[replica.name] = replica
    return fleet


def _place(placement: Placement, listed: Shortlisted | None, rooms: Rooms, work: Work, now: float) -> tuple[str, int]:
    """As the dispatcher does."""
    works = [work]
    if listed is not None:
        found = rooms.shortlist(works, (), listed.shortlist, listed.near(works))
        name = listed.place(works, found, now)
        return name, listed.chosen(works, name, now)
    if ranked(placement) is not None:
        room = rooms.first(works)
        assert room is not None
        return room.replica, 0
    fitting: list[Room] = [room for room in rooms if room.takes(works)]
    return placement.place(works, fitting, now), 0
