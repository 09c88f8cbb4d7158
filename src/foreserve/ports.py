"""The protocols: what a policy, an engine, a kind of service and a launcher must be able to do.

Whatever fits one of these can be registered by name (see `registry`) and chosen in the settings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import msgspec

from foreserve.core import (
    Chunk,
    Cost,
    EngineInfo,
    EngineLoad,
    EngineSpec,
    Outcome,
    Price,
    Ramp,
    Request,
    Work,
    add,
    fits,
)
from foreserve.messages import FromWorker, ToWorker

# --- what a policy is told and what it answers -------------------------------------------------------


class LookAhead(Protocol):
    """How much of a resource a replica will hold, step by step, as far as that is foreseen. Only read by policies."""

    def takes(self, ramps: Sequence[Ramp]) -> bool:
        """Whether these could begin now without the resource running out at any later step."""
        ...

    def peak(self, steps: int, ramps: Sequence[Ramp] = ()) -> float:
        """The highest share of any resource that is held at one of the next `steps` steps, were these begun now too."""
        ...

    def above(self, share: float, steps: int) -> float:
        """Of the next `steps` steps, how large a part holds more than `share` of some resource; 0 to 1."""
        ...

    def until(self, ramp: Ramp) -> int:
        """After how many steps there is room for this to begin, as far as is foreseen; 0: now."""
        ...

    def frozen(self) -> Any:
        """As it is now, for a recording of decisions: a struct or plain values that its fleet can make it of again."""
        ...


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts that a replica was given and of which no first token has come: `count` of them, together `tokens`.

    What is expected to be cached there is left out. `first` are the tokens of the one that is read now, which can have
    begun at `since` (loop seconds).
    """

    tokens: int
    first: int
    since: float
    count: int


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica can take now. Only replicas with a free slot are shown to a policy.

    With `ahead`, the resource of a work's ramp is judged there, and what `free` says of it is only what is free now.

    `holds` has what the engine bounds by itself: that limits nothing. `tokens` are those of the prompts and foreseen
    answers of all that runs there. `token_s` is how long it takes to read a token of a prompt and `step_s` how long a
    step takes, as of late; `None` is not known. `heard` is when it last said anything, in loop seconds.
    """

    replica: str
    free: dict[str, float]
    capacity: dict[str, float]
    running: int
    load: EngineLoad | None = None
    ahead: LookAhead | None = None
    tokens: int = 0
    unread: Unread | None = None
    token_s: float | None = None
    step_s: float | None = None
    heard: float | None = None
    holds: dict[str, float] = {}

    def most(self, resource: str) -> float | None:
        """All that it can hold of a resource; `None` where it does not tell."""
        most = self.capacity.get(resource)
        return self.holds.get(resource) if most is None else most

    def takes(self, works: Sequence[Work]) -> bool:
        """Whether these can start here now, together."""
        if self.ahead is None:
            return fits(total_cost(works), self.free)
        if len(works) == 1:
            alone, ramp = works[0].cost, works[0].ramp
            for name, free in self.free.items():
                if alone.get(name, 0.0) > free and (ramp is None or name != ramp.resource):
                    return False
            return ramp is None or self.ahead.takes((ramp,))
        ramps = [work.ramp for work in works if work.ramp is not None]
        cost = total_cost(works)
        for name, free in self.free.items():
            # Loops, since this is asked at every pick, often of many replicas.
            if cost.get(name, 0.0) > free and not any(ramp.resource == name for ramp in ramps):
                return False
        return not ramps or self.ahead.takes(ramps)


def total_cost(works: Sequence[Work]) -> Cost:
    """What several works ask for together."""
    return works[0].cost if len(works) == 1 else functools.reduce(add, (work.cost for work in works))


class Pick(msgspec.Struct, frozen=True, kw_only=True):
    """Run these together on one replica. `plan` reaches the engine as it is; `why` is for people.

    `among` are the replicas that placement may choose from, where the policy keeps another's room; empty: all that fit.
    """

    ids: tuple[str, ...]
    plan: Any = None
    why: str = ""
    among: tuple[str, ...] = ()


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing now; ask again at `until` (loop seconds) or when something changes, whichever is first."""

    until: float


class BatchPolicy(Protocol):
    """Who runs next, and together. Deterministic in these calls: no clock, no I/O, no global random state.

    It owns its ready structure, so that a pick stays cheap as the queue grows. What it picks must fit one of the
    rooms; what it picks has left its structure.
    """

    def add(self, work: Work, now: float) -> None: ...
    def remove(self, request_id: str) -> None:
        """Forget a waiting request. Unknown ids are ignored."""
        ...

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        """`rooms` are of replicas with a free slot, in the order in which a ranked placement prefers them.

        Where the placement does not rank they come as they became ready. They are looked up one by one, as far as they
        are read, stay the same for the whole call and are not to be read after it, but for a `list` made in it, whose
        `ahead` is then the replica's as it is by then.
        """
        ...

    def settled(self, outcome: Outcome) -> None:
        """Learn how a request that was added has ended."""
        ...


@runtime_checkable
class Ahead(Protocol):
    """A batch policy that does not go by arrival may tell admission where a request would stand."""

    def ahead(self, work: Work, now: float) -> float:
        """About how many of those that wait would start before this one, were it added now. Cheap."""
        ...


class Placement(Protocol):
    """Where picked work runs. Returns the `replica` of one of `rooms`; all of them have room for it. Pure."""

    def place(self, works: Sequence[Work], rooms: Sequence[Room], now: float) -> str: ...


@runtime_checkable
class Ranked(Placement, Protocol):
    """A placement that prefers one replica to another whatever is placed. It is asked in place of `place`.

    So it need not be shown every replica that has room, which matters where there are hundreds. Only a class that says
    `by_rank = True` is taken for one, see `ranked`.
    """

    by_rank: ClassVar[bool]

    def rank(self, room: Room) -> Any:
        """What is picked runs on the one of least rank that has room for it; equals in the order they became ready.

        Made of the replica's name, its capacity and how many run there alone, and comparable with any other rank.
        """
        ...


@runtime_checkable
class Shortlisted(Placement, Protocol):
    """A placement that looks closely at a few replicas, not at all: its `place` is shown a short list of them.

    On it are the `shortlist` of least `rank` that have room for what is picked, those of its `near` that have, and,
    where there are more than that, two drawn by the request's id. Only a class that says `shortlist` is taken for one.
    """

    shortlist: ClassVar[int]

    def rank(self, room: Room) -> Any:
        """As in `Ranked`, of what changes when works start, begin to answer and end there alone."""
        ...

    def near(self, works: Sequence[Work]) -> Sequence[str]:
        """Replicas that are worth a look for what they know of these works; unknown and full ones are passed over."""
        ...

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> int:
        """These go there. How many tokens of their prompts are expected to be cached there."""
        ...


@runtime_checkable
class HearsRanks(Ranked, Protocol):
    """A ranked placement that wants to know where the ranks have led."""

    def chosen(self, works: Sequence[Work], replica: str, now: float) -> None: ...


def ranked(placement: Placement) -> Ranked | None:
    """`placement`, where it is asked by rank; `None` where its `place` is.

    Its `rank` and its `by_rank` must be of the class that `place` is of, or below: a class that inherits both and has a
    `place` of its own is asked by that.
    """
    if not isinstance(placement, Ranked) or not placement.by_rank:
        return None
    of_place = _depth(placement, "place")
    return placement if _depth(placement, "rank") <= of_place and _depth(placement, "by_rank") <= of_place else None


def _depth(part: object, name: str) -> float:
    """How far up in its ancestry the class is that defines `name`; 0 is its own."""
    kinds = type(part).__mro__
    return next((depth for depth, kind in enumerate(kinds) if name in vars(kind)), math.inf)


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """What admission knows of a service.

    `slots` is the sum over its ready replicas; `seconds_per_request` the recent mean time on a replica (`None` until
    something has ended) and `least_seconds` what hardly any takes less than. `seconds_between_starts` is the pace of
    the queue while it was not empty (`None` until it has been). `stretch` is how much longer than predicted nearly all
    recent requests took, queue and replica together. `ahead` is how many would start before the request in question,
    where the policy tells; `None`: all that wait. `own` is how many of those that wait are of the request's own tenant
    (`None`: all), `tenants` how many tenants wait, that one included. `cold_s` is how long it takes until there is a
    replica, where a service that may have none has none: `max_wait_s` begins after that.
    """

    waiting: int
    running: int
    slots: float
    seconds_per_request: float | None
    least_seconds: float = 0.0
    stretch: float = 1.0
    seconds_between_starts: float | None = None
    ahead: float | None = None
    own: int | None = None
    tenants: int = 1
    cold_s: float = 0.0


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request is refused at once, in words, and in how many seconds it may be tried again."""

    reason: str
    retry_after: float


class Admission(Protocol):
    """Whether to take a request in. Pure."""

    def admit(self, work: Work, view: QueueView, now: float) -> Refusal | None: ...


# --- what executes -----------------------------------------------------------------------------------


class Sink(Protocol):
    """Where a continuous engine may put chunks of many requests within one step, without a task's turn for each."""

    @property
    def open(self) -> bool:
        """Whether chunks are taken now; while not, the engine keeps them for later."""
        ...

    def put(self, chunk: Chunk) -> None: ...


class Engine(Protocol):
    """What executes a model. Runs in a worker process or, `inline`, in the event loop.

    `run` yields chunks numbered from 0, the last one with `finish`; leaving the iterator early cancels.
    A `static` engine is called through `run_batch` alone, which yields the chunks of one step together. It is given no
    work that has `credits`: a batch goes at one pace.
    A continuous engine may have `hand_over(sink)`, called once after the start: it may then put chunks there in place
    of yielding them, all but each request's last and none of work that has `credits`.
    An engine may have `feed(request_id, data, last)` for inputs that are still growing, which may be called before the
    request's `run` has begun, and `failed()`, which returns
    why (words) once the engine is of no use any more: what it runs for has gone away, or it has lost its means. It is
    then ended like a process that exits, and started anew; what it has not given a finish by then is lost with it.
    One that has a device's memory by its own means may have `rest() -> bool`, awaited once it has been idle for
    `rest_s`: it lets go of what it holds there, or does not (False). `wake()` is awaited before it is asked for
    anything again; what either raises is a failure.
    One whose library ends the process where it gets no memory, rather than raise, has a true `aborts_without_memory`:
    its bound on memory is then watched, and not held by the kernel.
    The module of an engine may have `IMPORTED_LATER`, names of modules that it imports when it is started: processes
    that are to run it may have done that before they are forked.
    """

    async def start(self) -> EngineInfo:
        """Become ready. Raises EngineStartError with the reason in words."""
        ...

    def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]: ...
    def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncIterator[Sequence[Chunk]]: ...
    async def cancel(self, request_id: str) -> None:
        """Stop a request within one step. Idempotent; unknown ids are ignored."""
        ...

    async def load(self) -> EngineLoad: ...
    async def close(self) -> None: ...


class Listener(Protocol):
    """Who hears a replica's connection."""

    def heard(self, message: FromWorker) -> None: ...
    def exited(self, reason: str) -> None:
        """Called once, when the other side is gone, however that came about."""
        ...


class Connection(Protocol):
    """One live replica process (or actor, or in-process host), as its launcher hands it out."""

    pid: int | None

    def send(self, message: ToWorker) -> None:
        """Never blocks. A message to a replica that has exited is dropped: `exited` has told of it."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Ask it to exit, and end it by force after `grace_s`. Returns when it is gone."""
        ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts replicas. `inline`, `local`, later `ray`: one conformance suite, all pass it."""

    async def launch(self, name: str, spec: EngineSpec, listener: Listener) -> Connection:
        """Start a replica and send it `Start`; `Ready` or `StartFailed` reaches `listener`."""
        ...

    async def close(self) -> None: ...


# --- what a kind of service brings -------------------------------------------------------------------


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk means to the caller. `enough` ends the request as done: nothing more is wanted."""

    events: Sequence[Any] = ()
    enough: bool = False


class Resumed(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer goes on that has been given in part: `payload` asks an engine for the rest.

    `steps` is how many steps of its ramp the answer has come.
    """

    payload: Any
    steps: int


class Decoder(Protocol):
    """Turns one request's chunks into the events its caller reads, and keeps its own state.

    There is one for each attempt that begins anew. A decoder may have `resume() -> Resumed | None`, asked when its
    replica is lost: from then on it is fed the chunks of the attempt that goes on, and its `usage` counts all of them
    and replaces the engine's. `None` is where what comes would not be what the caller asked for.
    """

    def feed(self, chunk: Chunk) -> Decoded: ...
    def usage(self) -> dict[str, float]:
        """What has been used so far, as far as the chunks tell; an engine's own figures at the finish replace it."""
        ...


class Kind(Protocol):
    """What makes a service an LLM, a function, …: its price, its engine, its policy and how answers are read.

    The payload is already checked; `price` must be cheap and must not raise.
    """

    name: str
    idempotent: bool
    """Whether running a request twice does no harm, so that one whose replica is lost may run again."""

    @property
    def policy(self) -> str:
        """The batch policy used when the settings say `auto`, by name."""
        ...

    def engines(self) -> Sequence[EngineSpec]:
        """One for each replica, in order."""
        ...

    def price(self, request: Request) -> Price: ...
    def settled(self, outcome: Outcome) -> None:
        """Learn how a request of this kind has ended. Must be cheap and must not raise."""
        ...

    def ready(self, info: EngineInfo) -> None:
        """A replica of this kind is ready and this is what it can do."""
        ...

    def decoder(self, work: Work) -> Decoder: ...
    def events_bound(self, payload: Any) -> int:
        """The most undelivered events one request may hold."""
        ...
