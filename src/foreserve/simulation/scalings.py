"""What a run's scaling decided: how many replicas were wanted and foreseen over time, and the decisions themselves."""

from __future__ import annotations

import asyncio
from typing import Final

from foreserve.clock import wall
from foreserve.scaling import ScalingDecision
from foreserve.simulation import figures
from foreserve.simulation.windows import Windows

MOST_KEPT: Final = 1_000
"""Decisions that are told one by one; all are counted."""


class Scalings:
    """Of one service. A decision stands until the next one; what was decided before `begin` stands at its start."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None
        self._since = 0.0
        self._last: ScalingDecision | None = None
        self._kept: list[figures.Decision] = []
        self._count = 0
        self._ups = 0
        self._downs = 0

    def begin(self) -> None:
        """The windows begin now."""
        self._began = self._since = self._loop.time()

    def end(self) -> None:
        """Count up to now, and no further."""
        self._pass()
        self._last = None

    def heard(self, decision: ScalingDecision) -> None:
        """The service's scaler has decided, just now."""
        self._pass()
        self._last = decision
        if self._began is None or decision.granted == decision.active:
            return
        self._count += 1
        self._ups += max(decision.granted - decision.active, 0)
        self._downs += max(decision.active - decision.granted, 0)
        if len(self._kept) < MOST_KEPT:
            at = decision.at - (wall() - self._loop.time()) - self._began
            told = figures.Decision(
                at=at,
                active=decision.active,
                wanted=decision.wanted,
                granted=decision.granted,
                why="; ".join(filter(None, (decision.why, decision.shared))),
                figures=decision.figures,
            )
            self._kept.append(told)

    def _pass(self) -> None:
        """As it has stood since it last changed."""
        now = self._loop.time()
        if self._began is None or self._last is None:
            self._since = now
            return
        need = self._last.figures.get("need")
        for window, seconds in self._windows.during(self._since - self._began, now - self._began):
            window.decided_s += seconds
            window.wanted_s += seconds * self._last.wanted
            if need is not None:
                window.foreseen_s += seconds
                window.foreseen_need_s += seconds * need
        self._since = now

    def told(self, starts: int, stops: int) -> figures.Scaling:
        """What has been found; `starts` and `stops` are those of replicas."""
        return figures.Scaling(
            starts=starts, stops=stops, changes=self._count, added=self._ups, taken=self._downs, decisions=self._kept
        )
