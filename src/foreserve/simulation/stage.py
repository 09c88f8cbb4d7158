"""Where faults take place: a started app, its launcher, its clients, and what a plan of faults can do to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from foreserve.app import Running
from foreserve.ports import Launcher
from foreserve.simulation.drive import Drive
from foreserve.simulation.twin import Twin
from foreserve.traces.row import TraceRow


@dataclass(frozen=True)
class Stage:
    """One simulation, started, before its first row."""

    running: Running
    launcher: Launcher
    drive: Drive
    twins: Mapping[str, Twin]


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a fault did, at `at` (loop seconds): to whom, and what."""

    at: float
    fault: str
    to: str
    what: str


class FaultPlan(Protocol):
    """What will go wrong in one simulation. Of no use for a second one: make another of the same words and seed."""

    happened: list[Happened]
    """What has gone wrong so far: the first of it, for there may be much."""

    struck: Counter[str]
    """How often each fault has struck, by its name: all of it."""

    def launching(self, launcher: Launcher) -> None:
        """Called once, before the app is started: for what befalls the first starts."""
        ...

    def rows(self, rows: Iterator[TraceRow]) -> Iterator[TraceRow]:
        """The trace as it then comes. In order of arrival, as it was."""
        ...

    def begin(self, stage: Stage) -> None:
        """Called once, when the app has started and before the first row."""
        ...
