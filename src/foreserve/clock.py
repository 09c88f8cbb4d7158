"""Time and work off the loop, the same live and simulated: everything asks the running event loop.

A virtual loop (see `simulation.clock`) sets `loop.virtual = True` and has `loop.epoch`; the functions here are the one
place that tells the two apart.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def now() -> float:
    """Seconds on the running loop's clock: for arrivals, deadlines and waits. A live loop ticks in milliseconds."""
    return asyncio.get_running_loop().time()


def wall() -> float:
    """Seconds since the epoch, or the trace's own time on a virtual loop: for calendars and history."""
    loop = asyncio.get_running_loop()
    if getattr(loop, "virtual", False):
        return float(loop.epoch) + loop.time()  # type: ignore[attr-defined]
    return time.time()


def precise() -> float:
    """Seconds for durations, to the microsecond; only differences mean anything."""
    loop = asyncio.get_running_loop()
    if getattr(loop, "virtual", False):
        return loop.time()
    return time.perf_counter()


async def offload(fn: Callable[[], T], cost: float = 0.0) -> T:
    """Run `fn` off the loop: in a thread when live; on a virtual loop at once, its result due after `cost` seconds.

    Either way it sees the caller's context variables.
    """
    loop = asyncio.get_running_loop()
    if getattr(loop, "virtual", False):
        result = fn()
        await asyncio.sleep(cost)
        return result
    return await loop.run_in_executor(None, contextvars.copy_context().run, fn)
