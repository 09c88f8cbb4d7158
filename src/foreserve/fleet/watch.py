"""Between a replica and its listener: passes messages on, judges silence, tells of the exit once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from foreserve.core import EngineSpec
from foreserve.messages import FromWorker, Ready, StartFailed
from foreserve.ports import Listener

log = logging.getLogger(__name__)

LOOKS = 8
"""How many looks in a row must have heard nothing before a replica counts as silent.

A pause of our own (a blocked loop, a suspended machine) is one look however long it lasts, so it is not taken for
theirs.
"""


def heartbeat_s(spec: EngineSpec) -> float:
    """How often a replica should tell that it lives: a few times within its liveness limit, at most once a second."""
    return min(1.0, spec.liveness_s / 4)


class Watch:
    """`give_up(reason)` is called when the replica is not ready within its limit, or silent for too long after that.

    `waits()` is what a start waits for that is not its own doing, in words; it is told where that was too long.
    """

    def __init__(
        self,
        spec: EngineSpec,
        listener: Listener,
        give_up: Callable[[str], None],
        waits: Callable[[], str] = str,
    ) -> None:
        self._spec = spec
        self._listener = listener
        self._give_up = give_up
        self._waits = waits
        self._silent_looks = 0
        self._exited = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(spec.start_limit_s, self._late)

    def heard(self, message: FromWorker) -> None:
        """A message of the replica. What the listener raises is logged: one listener does not stop the others."""
        if self._exited:
            return
        self._silent_looks = 0
        if isinstance(message, Ready):
            self._look_later()
        elif isinstance(message, StartFailed):
            self._timer.cancel()
        try:
            self._listener.heard(message)
        except Exception:
            log.exception("a message of a replica was not handled: %s", type(message).__name__)

    def exited(self, reason: str) -> None:
        """The replica is gone. Every call but the first is ignored."""
        if self._exited:
            return
        self._exited = True
        self._timer.cancel()
        try:
            self._listener.exited(reason)
        except Exception:
            log.exception("the exit of a replica was not handled")

    def _late(self) -> None:
        waits = self._waits()
        self._give_up(f"not ready within {self._spec.start_limit_s:g} s" + (f": {waits}" if waits else ""))

    def _look_later(self) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(self._spec.liveness_s / LOOKS, self._look)

    def _look(self) -> None:
        self._silent_looks += 1
        if self._silent_looks >= LOOKS:
            self._give_up(f"silent for {self._spec.liveness_s:g} s")
        else:
            self._look_later()
