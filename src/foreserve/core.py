"""The nouns: what a request is, what it costs, what comes back, how it ends.

All are frozen `msgspec.Struct`s, so they can cross a process as they are. Times called `at`, `arrival`
or `deadline` are seconds on the event loop's clock (`loop.time()`); durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

import msgspec

from foreserve.errors import BY_CODE, EngineFailed, RequestError, UpstreamRefused

Role = Literal["any", "writer"]

Cost = Mapping[str, float]
"""Amounts by resource name (`slots`, `kv_tokens`, `seconds`, `bytes`). Only compared, never interpreted."""


def fits(cost: Cost, room: Cost) -> bool:
    """Whether every amount that `room` limits covers what `cost` asks of it.

    A resource that `room` does not name is not limited there.
    """
    return all(cost.get(name, 0.0) <= free for name, free in room.items())


def add(a: Cost, b: Cost) -> dict[str, float]:
    """Sum by resource name."""
    return {**a, **{name: a.get(name, 0.0) + amount for name, amount in b.items()}}


def subtract(a: Cost, b: Cost) -> dict[str, float]:
    """What is left of `a` once `b` is taken; resources that `a` does not name stay unlimited."""
    return {name: amount - b.get(name, 0.0) for name, amount in a.items()}


def restore(a: Cost, b: Cost) -> dict[str, float]:
    """The opposite of `subtract`: `b` is given back to `a`, in the resources that `a` names."""
    return {name: amount + b.get(name, 0.0) for name, amount in a.items()}


class Length(msgspec.Struct, frozen=True, kw_only=True):
    """How long an answer is expected to be, in tokens: its mean and quantiles, each at least 1.

    `source` says what it was learned from, such as "full", "fast", "histogram" or "limit" (nothing was known).
    """

    mean: float
    p50: float
    p80: float
    p95: float
    source: str


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What a request is expected to take, made once, when it comes, of what is known then.

    `input_tokens` is the whole prompt's length, `output` the answer's, `most_tokens` the limit that the request sets.
    `seconds` is the expected time on a replica from start to end, under a load like that of late; `least_seconds` what
    it takes at the least of which there is much chance, for telling whether a deadline can still be met. Of what has no
    tokens only the seconds mean anything; its `most_tokens` is 0.
    """

    input_tokens: int
    output: Length
    most_tokens: int
    seconds: float
    least_seconds: float = 0.0


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """How an input begins: one number for each block of `block_tokens` tokens, which tells all up to the block's end.

    Two inputs that agree in a block's number agree in all before it. Only the first few dozen blocks are told.
    """

    block_tokens: int
    blocks: tuple[int, ...]


class Ramp(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of `resource` that begins at `base` and grows by one each step, as is foreseen for `steps` steps.

    It may go on longer, until the amount is `most`.
    """

    resource: str
    base: int
    steps: int
    most: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks of one service, with its terms. `payload` belongs to the service's kind.

    So does `about`: what a prediction is made from and learned by; it never leaves this process. A child of another
    request has that one's id as `parent` and its arrival as `root_arrival`; `depth` is how many steps of a pipeline
    lie before it, `after_s` how many seconds what comes behind it there is expected to take.
    """

    id: str
    service: str
    payload: Any
    arrival: float
    deadline: float | None = None
    utility: float = 1.0
    tenant: str = "default"
    parent: str | None = None
    root_arrival: float | None = None
    affinity: str | None = None
    depth: int = 0
    after_s: float = 0.0
    about: Any = None


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A priced request: what policies order, replicas carry and engines run.

    `payload` is opaque to everything but the kind that made it and the engine that runs it.
    `affinity` is the key of sticky or prefix placement. `role` and `sequence` are for work that goes to one writer
    replica in order; they are carried, and no dispatcher heeds them yet. Only `idempotent` work is run again, under the
    next `attempt`, when its replica is lost; `crowded` of its attempts ran out of memory beside others. `credits`
    bounds how many chunks may be asked of the engine before more credit is given; `None` is no bound. Only continuous
    engines take it: in a static batch one request without credit would stop all the others.

    `forecast` is for policies and people. Where there is a `ramp`, a replica looks ahead in place of setting aside what
    `cost` says of that resource. `prefix` is for placement, where the kind tells it. `plans` are those that it may be
    run with, where there is a choice, each with the share of its utility that the answer is then worth (0 to 1).
    """

    id: str
    payload: Any
    cost: dict[str, float]
    arrival: float
    deadline: float | None = None
    utility: float = 1.0
    tenant: str = "default"
    parent: str | None = None
    root_arrival: float | None = None
    affinity: str | None = None
    depth: int = 0
    after_s: float = 0.0
    role: Role = "any"
    sequence: int | None = None
    idempotent: bool = True
    attempt: int = 0
    crowded: int = 0
    credits: int | None = None
    forecast: Forecast | None = None
    ramp: Ramp | None = None
    prefix: Prefix | None = None
    plans: dict[str, float] | None = None


FinishReason = Literal["stop", "length", "cancelled", "rejected", "error"]


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine ended a request. `usage` is what it measured (for a language model `prompt_tokens`, …).

    `error` says in words what went wrong (`rejected`: the request, `error`: the engine); `detail` is the kind's own.
    """

    reason: FinishReason
    error: str | None = None
    usage: dict[str, float] = {}
    detail: Any = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer, in order of `index` within one `attempt`. The last one carries `finish`."""

    id: str
    index: int
    data: Any = None
    attempt: int = 0
    finish: Finish | None = None


class OutcomeKind(StrEnum):
    """The five ways a request ends. Every request ends in exactly one."""

    DONE = "done"
    SHED = "shed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one request ended, with the figures that predictors and people learn from.

    `code` is a `RequestError.code` (empty when done) and `reason` its words. `started` is when it was given to a
    replica and `first` when its first chunk arrived; both are `None` where that never happened. `beside` are the ids it
    was started together with and `running` is how many its replica held already; `ahead` is how many waited when it
    came, `before` how many were started while it waited. `again` says in a word or two why the last of several attempts
    was made: "replica lost", "replica left" (it was to end), "out of memory", "server full", "server loading" or
    "broken off", then ", resumed" where it went on after what had been delivered. Empty where there was one attempt.
    """

    id: str
    service: str
    kind: OutcomeKind
    arrival: float
    ended: float
    started: float | None = None
    first: float | None = None
    finish: FinishReason | None = None
    code: str = ""
    reason: str = ""
    retry_after: float | None = None
    detail: Any = None
    tenant: str = "default"
    parent: str | None = None
    replica: str | None = None
    attempt: int = 0
    why: str = ""
    cost: dict[str, float] = {}
    usage: dict[str, float] = {}
    forecast: Forecast | None = None
    beside: tuple[str, ...] = ()
    running: int = 0
    ahead: int = 0
    before: int = 0
    again: str = ""

    def error(self) -> RequestError | None:
        """The exception a caller should see, or `None` when the request was done."""
        if self.kind is OutcomeKind.DONE:
            return None
        if self.code == UpstreamRefused.code:
            return UpstreamRefused(self.reason, detail=self.detail)
        return BY_CODE.get(self.code, EngineFailed)(self.reason, retry_after=self.retry_after)


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks of a replica and, where something is foreseen, how that comes about. See `Work`.

    `idempotent` is said of this request alone; `None`: as of all of its kind.
    """

    cost: dict[str, float]
    idempotent: bool | None = None
    forecast: Forecast | None = None
    ramp: Ramp | None = None
    prefix: Prefix | None = None
    plans: dict[str, float] | None = None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is, told once when it is ready.

    `capacity` is the most it may hold at once by resource name and always names `slots`. A `static` engine runs one
    batch at a time to its end; a `continuous` one takes work whenever it has room. `holds` has the resources
    that it bounds by itself, by queueing or preempting: they are anticipated, and limit nothing. `facts` are the kind's
    own (`context_tokens`, `weights`, …).
    """

    batching: Literal["continuous", "static"]
    capacity: dict[str, float]
    features: tuple[str, ...] = ()
    facts: dict[str, Any] = {}
    holds: dict[str, float] = {}


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of an engine's load. `None` is not known; it is never taken for idle.

    `others` is how many requests it has that did not come from us, where it can be told.
    """

    running: int | None = None
    waiting: int | None = None
    kv_fraction: float | None = None
    cached_tokens: int | None = None
    last_step_s: float | None = None
    others: int | None = None


class WeightsRef(msgspec.Struct, frozen=True, kw_only=True):
    """Read-only data that an engine declares before it runs, so that it can be loaded beside the start of its process.

    `name` is how the engine asks for it. `source` is a safetensors file (`file`), an address (`uri`), or a callable
    that returns arrays by name, `"module:attribute"` or `"file.py:attribute"` (`loader`). With `sha256` (hex) contents
    that differ are an error. `device` is where they are wanted, such as `cuda:0` (`None`: in the host's memory).
    """

    name: str
    source: str
    kind: Literal["file", "uri", "loader"] = "file"
    sha256: str | None = None
    device: str | None = None


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to make an engine, in this process or another: `factory` is `"module:attribute"` or `"file.py:attribute"`.

    `options` are its keyword arguments (plain values). `python` is the interpreter of its worker process (`None`:
    ours), `env` is added to that process's environment. `start_limit_s` bounds the time until it is ready and
    `liveness_s` the silence that is taken for a hang; it must exceed the longest engine step. `most_backoff_s` bounds
    the pause before a restart (`None`: the fleet's own bound); an engine that is cheap to start may want a short one.

    `weights` are loaded while the process comes up, once for all workers of this machine. `imports` are modules that
    its process may have imported before it is wanted; with `learn`, those too that its workers are seen to import, but
    for the package `own`. `memory_bytes` bounds what it may write to, beyond what it has when it is ready (`None`: no
    bound). Once it has been idle for `rest_s` it lets go of its weights on a device until it is wanted; the
    fleet's settings say how long that is.
    """

    factory: str
    options: dict[str, Any] = {}
    python: str | None = None
    env: dict[str, str] = {}
    start_limit_s: float = 300.0
    liveness_s: float = 60.0
    most_backoff_s: float | None = None
    weights: tuple[WeightsRef, ...] = ()
    imports: tuple[str, ...] = ()
    learn: bool = True
    own: str = ""
    memory_bytes: int | None = None
    rest_s: float = 5.0
