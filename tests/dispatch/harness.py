"""A dispatcher with scripted replicas, for tests on the virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec

from foreserve.core import Chunk, Cost, Finish, Outcome, Work
from foreserve.dispatch.admission import Bounded
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.dispatcher import Dispatcher
from foreserve.dispatch.ledger import Ledger
from foreserve.dispatch.placement import LeastRequests
from foreserve.dispatch.stream import Stream
from foreserve.ports import Decoded, Resumed, Room


class PlainDecoder:
    """Every chunk's data is one event; "enough" wants no more."""

    def __init__(self) -> None:
        self.seen = 0

    def feed(self, chunk: Chunk) -> Decoded:
        if chunk.data is None:
            return Decoded()
        self.seen += 1
        return Decoded(events=[chunk.data], enough=chunk.data == "enough")

    def usage(self) -> dict[str, float]:
        return {"items": self.seen}


class Tale(msgspec.Struct, frozen=True):
    """A payload: tell `text` letter by letter, from `told` on, one each `step_s`."""

    text: str
    step_s: float
    told: int = 0


class Listener:
    """The decoder of a `Tale`, which can be told on."""

    resumptions: ClassVar[int] = 0

    def __init__(self, tale: Tale) -> None:
        self._tale = tale
        self._heard = ""

    def feed(self, chunk: Chunk) -> Decoded:
        self._heard += chunk.data or ""
        return Decoded(events=[chunk.data] if chunk.data else [])

    def resume(self) -> Resumed | None:
        told = len(self._heard)
        Listener.resumptions += 1
        return Resumed(payload=msgspec.structs.replace(self._tale, told=told), steps=told)

    def usage(self) -> dict[str, float]:
        return {"letters": len(self._heard)}


class ScriptedReplica:
    """Runs `payload` seconds of work, a chunk half-way and a finish at the end, or tells a tale; `slots` at once."""

    def __init__(self, name: str, house: House, slots: int = 1) -> None:
        self.name = name
        self.slots = slots
        self.held: dict[str, Work] = {}
        self.batches: list[tuple[str, ...]] = []
        self.plans: list[Any] = []
        self.most_held = 0
        self._house = house
        self._timers: dict[str, list[asyncio.TimerHandle]] = {}

    def capacity(self) -> Cost:
        return {"slots": self.slots}

    def room(self) -> Room | None:
        free = self.slots - len(self.held)
        if free < 1:
            return None
        return Room(replica=self.name, free={"slots": free}, capacity={"slots": self.slots}, running=len(self.held))

    def run(self, works: Sequence[Work], plan: Any) -> None:
        self.batches.append(tuple(work.id for work in works))
        self.plans.append(plan)
        loop = asyncio.get_running_loop()
        for work in works:
            self.held[work.id] = work
            if isinstance(work.payload, Tale):
                self._timers[work.id] = list(self._tell(work, work.payload))
                continue
            half = float(work.payload) / 2
            self._timers[work.id] = [
                loop.call_later(half, self.say, work, 0, "half", None),
                loop.call_later(2 * half, self.say, work, 1, None, Finish(reason="stop", usage={"items": 7})),
            ]
        self.most_held = max(self.most_held, len(self.held))

    def _tell(self, work: Work, tale: Tale) -> Iterator[asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        rest = tale.text[tale.told :]
        for index, letter in enumerate(rest):
            yield loop.call_later((index + 1) * tale.step_s, self.say, work, index, letter, None)
        finish = Finish(reason="stop", usage={"letters": len(rest)})
        yield loop.call_later((len(rest) + 1) * tale.step_s, self.say, work, len(rest), None, finish)

    def say(self, work: Work, index: int, data: Any, finish: Finish | None) -> None:
        if finish is not None:
            self.held.pop(work.id, None)
        chunk = Chunk(id=work.id, index=index, data=data, attempt=work.attempt, finish=finish)
        self._house.dispatcher.chunks(self, [chunk])

    def abort(self, ids: Sequence[str]) -> None:
        for request_id in ids:
            for timer in self._timers.pop(request_id, []):
                timer.cancel()
            work = self.held.get(request_id)
            if work is not None:  # the engine stops one step later
                asyncio.get_running_loop().call_later(0.01, self.say, work, 99, None, Finish(reason="cancelled"))

    def fail(self, request_id: str, index: int, finish: Finish) -> None:
        """End one request at once, as its engine does on an error."""
        for timer in self._timers.pop(request_id):
            timer.cancel()
        self.say(self.held[request_id], index, None, finish)

    def die(self, reason: str = "killed") -> None:
        for timers in self._timers.values():
            for timer in timers:
                timer.cancel()
        self.held.clear()
        self._house.dispatcher.detach(self, reason)


class House:
    """A dispatcher, its ledger and every outcome. Make it inside the running loop."""

    def __init__(
        self, *, policy: Any = None, placement: Any = None, admission: Any = None, max_wait_s: float = 1000.0
    ) -> None:
        self.ledger = Ledger()
        self.outcomes: list[Outcome] = []
        self.dispatcher = Dispatcher(
            "test",
            policy or FirstCome(),
            placement or LeastRequests(),
            admission or Bounded(max_waiting=1000, max_wait_s=1000.0),
            self.ledger,
            max_wait_s=max_wait_s,
            settled=self.outcomes.append,
        )

    def replica(self, name: str = "r0", slots: int = 1) -> ScriptedReplica:
        replica = ScriptedReplica(name, self, slots)
        self.dispatcher.attach(replica)
        return replica

    def submit(self, request_id: str, seconds: float = 1.0, **words: Any) -> Stream:
        now = asyncio.get_running_loop().time()
        stall_s = words.pop("stall_s", 30.0)
        bound = words.pop("bound", 100)
        decoder = words.pop("decoder", PlainDecoder)
        payload = words.pop("payload", seconds)
        work = Work(id=request_id, payload=payload, cost=words.pop("cost", {"slots": 1}), arrival=now, **words)
        stream = Stream(request_id, decoder, bound=bound, stall_s=stall_s, on_leave=self.dispatcher.leave)
        self.dispatcher.submit(work, stream)
        return stream

    def tell(self, request_id: str, text: str, step_s: float, **words: Any) -> Stream:
        tale = Tale(text, step_s)
        return self.submit(request_id, payload=tale, decoder=lambda: Listener(tale), **words)

    def turned_away(self, request_id: str) -> bool:
        now = asyncio.get_running_loop().time()
        stream = Stream(request_id, PlainDecoder, bound=1, stall_s=1.0, on_leave=self.dispatcher.leave)
        return self.dispatcher.turn_away(Work(id=request_id, payload=None, cost={}, arrival=now), stream)

    def ended(self) -> dict[str, str]:
        return {outcome.id: outcome.kind.value for outcome in self.outcomes}
