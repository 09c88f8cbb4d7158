"""How many replicas a load needs: the rules that scaling policies are made of, each a pure function.

Source: PreServe (arXiv 2504.03702): Alg. 2 for the count that a forecast asks for, the look-ahead maps for overload and
consolidation. That a queue is cleared in time is ours: with one queue for all replicas no map ever exceeds its
capacity, and what is too much waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from foreserve.scaling import Amounts, Capacity, ReplicaView, ScalingView

LOOK_AHEAD_STEPS: Final = 100
OVERLOADED: Final = 0.95
OVERLOADED_FOR: Final = 0.10
CONSOLIDATE: Final = 0.30
"""PreServe's: a replica is overloaded when more than a tenth of its next hundred steps is more than 95 % full, and all
have little to do when none is ever foreseen to be more than 30 % full."""

COARSE: Final = ("requests", "seconds")
"""Measures that say little where there are finer ones: requests differ in size, and seconds grow with the load."""

ROUND: Final = 1e-9
"""What is so little above a whole number is that number: sums of fractions are never exact."""


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """So many replicas, in fractions, would be kept fully busy. `measure` is the one that asks for most of them.

    Of that measure `per_s` comes in each second, and one replica can do `each` of it.
    """

    replicas: float = 0.0
    measure: str = ""
    per_s: float = 0.0
    each: float = 0.0


def need(per_s: Amounts, capacity: Capacity | None) -> Need | None:
    """What `per_s` (amounts for each second) keeps busy; `None` where nothing of both is known.

    The fullest measure counts; of `COARSE` ones only where there is no other.
    """
    if capacity is None:
        return None
    both = [name for name in sorted(per_s) if capacity.per_s.get(name, 0.0) > 0]
    measures = [name for name in both if name not in COARSE] or both
    return max(
        (
            Need(
                replicas=per_s[name] / capacity.per_s[name], measure=name, per_s=per_s[name], each=capacity.per_s[name]
            )
            for name in measures
        ),
        key=lambda each: each.replicas,
        default=None,
    )


def whole(replicas: float) -> int:
    """The least number of replicas that is enough."""
    return max(0, math.ceil(replicas - ROUND))


def share_held(replica: ReplicaView, steps: int = LOOK_AHEAD_STEPS) -> float | None:
    """How full it is or is foreseen to be within `steps`, of its fullest resource; `None`: that is not known."""
    if not replica.known:
        return None
    slots = replica.running / replica.slots if replica.slots > 0 else float(replica.running > 0)
    ahead = 0.0 if replica.ahead is None else replica.ahead.peak(steps)
    told = replica.load.kv_fraction if replica.load is not None and replica.load.kv_fraction is not None else 0.0
    return max(slots, ahead, told)


def overloaded(replica: ReplicaView, above: float = OVERLOADED, part: float = OVERLOADED_FOR) -> bool:
    """Whether its map is fuller than `above` for more than `part` of the steps ahead."""
    return replica.ahead is not None and replica.ahead.above(above, LOOK_AHEAD_STEPS) > part


def consolidated(peaks: Sequence[float], below: float = CONSOLIDATE) -> int | None:
    """How many of these are enough, where none is ever foreseen to be fuller than `below`; else `None`."""
    if not peaks or max(peaks) >= below:
        return None
    return max(1, whole(sum(peaks) / below))


def filled(view: ScalingView) -> float:
    """How many replicas what runs and waits would fill, if what waits is as large as what runs; 0 where none tells."""
    shares = [share_held(replica) for replica in view.replicas]
    running = sum(replica.running for replica in view.replicas)
    if not running:
        return 0.0
    held = sum(share for share in shares if share is not None)
    return held * (running + view.waiting.count) / running


def backlog(view: ScalingView) -> float:
    """For how many seconds what waits would keep one replica busy, as far as anything tells."""
    waiting = view.waiting
    if not waiting.count:
        return 0.0
    slots = max((replica.slots for replica in view.replicas), default=0.0)
    by_seconds = waiting.seconds / slots if slots > 0 else 0.0
    rate = 0.0 if view.capacity is None else view.capacity.per_s.get("requests", 0.0)
    return max(by_seconds, waiting.count / rate if rate > 0 else 0.0)


def to_clear(view: ScalingView, within_s: float, flow: float) -> float:
    """Replicas that have cleared, `within_s` after a start, what will still wait by then, and what goes on coming.

    `flow` keeps so many of them busy. Those that start count as if they were there: what they will clear is gone.
    """
    late_s = max(view.start_s, 1.0)
    left = backlog(view) + (flow - view.active) * late_s
    return flow + max(0.0, left) / within_s if left > 0 else 0.0
