"""How far a service has left the machine, what its next request pays, and what coming back has cost: pure.

running -> workers (no copy of their weights on a device) -> weights (no worker) -> context (no host copy of its
weights) -> cold (no process to fork from either)
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from foreserve.core import WeightsRef
from foreserve.runtime.memory_messages import mark

KEPT: Final = 9
"""Returns that are remembered of each stage."""


class Stage(StrEnum):
    """A stage of exit, in order, named after what is left.

    A service without weights of its own goes from `running` to `context`, one whose weights are not on a device never
    comes to `workers`.
    """

    RUNNING = "running"
    WORKERS = "workers"
    WEIGHTS = "weights"
    CONTEXT = "context"
    COLD = "cold"


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """What is there of a service. `wants` is whether it has read-only weights at all, `weights` whether all are held.

    `workers` are replicas that are ready, starting or leaving; `context` is whether a process with its imports is up.
    `copies` is whether its weights are on their device, where they ever are, or no replica that is ready lacks them.
    """

    workers: int
    wants: bool
    weights: bool
    context: bool
    copies: bool = True


def stage(present: Present) -> Stage:
    """Where it stands. Weights count also where the process with its imports has gone before them."""
    if present.workers:
        return Stage.RUNNING if present.copies else Stage.WORKERS
    if present.wants and present.weights:
        return Stage.WEIGHTS
    return Stage.CONTEXT if present.context else Stage.COLD


def pays(present: Present) -> tuple[str, ...]:
    """What the next request waits for, in words; what is named side by side is done side by side."""
    if present.workers:
        return () if present.copies else ("copying the weights to their device",)
    process = "a fork" if present.context else "an interpreter and its imports"
    if not present.wants:
        return (process,)
    return process, "mapping the weights" if present.weights else "reading the weights"


def all_held(refs: Sequence[WeightsRef], ready: Collection[int]) -> bool:
    """Whether all of `refs`, with absolute paths, are among `ready`, the marks that the memory owner tells."""
    return all(mark(ref) in ready for ref in refs)


class Returns:
    """How long starts took, by the stage that they began from: the last few of each."""

    def __init__(self) -> None:
        self._took: dict[Stage, deque[float]] = {}

    def add(self, origin: Stage, seconds: float) -> None:
        """One start from `origin` until the replica was ready."""
        self._took.setdefault(origin, deque(maxlen=KEPT)).append(seconds)

    def medians(self) -> dict[Stage, float]:
        """Seconds, of the stages that have been returned from."""
        return {origin: statistics.median(self._took[origin]) for origin in Stage if origin in self._took}
