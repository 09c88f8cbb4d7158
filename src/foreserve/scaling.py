"""The nouns of scaling: what came, what will come, how replicas stand, and how many there should be.

Amounts are by measure, and nothing here knows what a measure means but for `requests`: a language model has
`input_tokens` and `output_tokens` beside it, every kind `seconds` (of a replica). Times called `at` are seconds since
the epoch (calendars mean something there), `now` and `since` are loop seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from foreserve.core import EngineLoad
from foreserve.ports import LookAhead

Amounts = Mapping[str, float]
"""By measure."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What came to one service from `at` on, for `window_s` seconds: refused requests too, for they were load.

    An answer's tokens count where its request came; until it has ended they are those that were foreseen.
    """

    at: float
    window_s: float
    amounts: dict[str, float]


class LoadForecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is foreseen to come in the `window_s` seconds from `at` on.

    With a chance of `level` each amount is at most what `high` says, and with the same at least what `low` says.
    `model` is the forecaster that said so, `why` tells in words why it was asked. `error` is how far off it was on
    the number of requests in the last `judged_s` seconds, as a share (`None`: there was too little to judge it by).
    """

    at: float
    window_s: float
    expected: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    level: float
    model: str
    why: str = ""
    error: float | None = None
    judged_s: float = 0.0


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """How much one replica can do, by measure and second, at the mix of late. A measure that is not known is not there.

    `why` tells in words where that is known from. What is not `measured` is a guess, and may be far off.
    """

    per_s: dict[str, float]
    why: str = ""
    measured: bool = True


ReplicaPhase = Literal["starting", "ready", "isolated", "draining"]
"""An isolated replica is given nothing new and may be taken back; a draining one leaves for good."""


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, as scaling sees it: in `phase` since `since`, running so many of `slots` requests.

    `ahead` is how much it will hold where it has a resource that ramps up. `known`: what it says of itself is fresh; a
    replica that is not known is never taken for idle.
    """

    name: str
    phase: ReplicaPhase
    since: float
    running: int = 0
    slots: float = 0.0
    load: EngineLoad | None = None
    ahead: LookAhead | None = None
    known: bool = True


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Those in the queue: how many, since when the first of them, and what they ask for.

    `seconds` is the sum of the time that each is foreseen to take on a replica (0 for those of which nothing is), and
    `amounts` the sum of their costs by resource name, with the height that a ramp is foreseen to reach in place of it.
    `predicted_wait_s` is how long one that came now would wait, `None` where nothing tells.
    """

    count: int = 0
    oldest_s: float = 0.0
    seconds: float = 0.0
    amounts: dict[str, float] = {}
    predicted_wait_s: float | None = None


class ScalingView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a scaling policy is told of a service.

    `recent` is what came in each second of late, by measure. `forecast` is of the time when a replica that is asked for
    now would be ready, `None` while nothing is known. `start_s` is how long a start takes, as measured. `idle_s` is how
    long nothing has run or waited. `least` and `most` bound the number of replicas.
    """

    service: str
    at: float
    replicas: tuple[ReplicaView, ...]
    waiting: Waiting
    recent: dict[str, float]
    least: int
    most: int
    forecast: LoadForecast | None = None
    capacity: Capacity | None = None
    start_s: float = 0.0
    idle_s: float = 0.0

    @property
    def active(self) -> int:
        """Those that work or are about to: ready and starting ones."""
        return sum(replica.phase in ("starting", "ready") for replica in self.replicas)


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas there should be, in words why, and the figures behind it, by name."""

    wanted: int
    why: str
    figures: dict[str, float] = {}


class ScalingPolicy(Protocol):
    """How many replicas a service should have. Pure but for its own memory: deterministic in these calls."""

    def decide(self, view: ScalingView, now: float) -> Scale:
        """Asked every few seconds, and at once when a request waits and there is no replica."""
        ...


class ScalingDecision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision as it is kept for `foreserve explain --scaling`: at `at` there were `active` replicas.

    `granted` is what the machine had room for, which is less than `wanted` where services share it; `shared` tells why.
    """

    service: str
    at: float
    active: int
    wanted: int
    granted: int
    why: str
    shared: str = ""
    figures: dict[str, float] = {}
