"""All of an engine's copies again, where others want theirs on the same device: nobody keeps some and waits for ever.

Two engines that each have one of two copies, on a device that is full, would wait for each other. So who has some waits
for the next a while only, gives back what he has and begins anew with what he did not get, for which he then waits with
nothing in his hands. How long a while is grows, and is drawn, so that two who give way do not do so in step for ever.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Final

from foreserve.errors import EngineStartError
from foreserve.runtime.placed import Placed

WAKE_S: Final = 300.0
"""The longest that all of it may take; then the engine fails, and what it was given runs elsewhere."""

PATIENCE_S: Final = 5.0
"""The first of those whiles. What was copied meanwhile stays there, idle, unless its room is wanted."""


def wake(
    placed: Sequence[Placed], now: Callable[[], float], limit_s: float = WAKE_S, patience_s: float = PATIENCE_S
) -> bool:
    """Have all of them. Whether any had to be copied anew. Blocks, so a thread does this.

    `now` tells seconds: a thread has no loop to ask.

    Raises EngineStartError where one cannot be had any more, or not all are there after `limit_s` seconds.
    """
    drawn = secrets.SystemRandom()  # forked workers would share the state of any other
    order, end, copied = list(placed), now() + limit_s, False
    while True:
        had: list[Placed] = []
        late: Placed | None = None
        for each in order:
            left = max(0.0, end - now())
            found = each.wake(min(left, patience_s) if had else left)
            if found is None:
                late = each
                break
            copied = copied or found
            had.append(each)
        if late is None:
            return copied
        for each in had:
            each.rest()
        if now() >= end:
            words = f"the weights on {late.device} could not be had again within {limit_s:g} s"
            raise EngineStartError(f"{words}: {late.waits}" if late.waits else words)
        order.remove(late)
        order.insert(0, late)
        threading.Event().wait(min(drawn.uniform(0.0, patience_s), max(0.0, end - now())))
        patience_s = min(patience_s * drawn.uniform(1.0, 2.0), limit_s / 4)
