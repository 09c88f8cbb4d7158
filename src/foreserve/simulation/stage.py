"""Where faults take place: a started app, its launcher, its clients, and what a plan of faults can do to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from foreserve.app import App
from foreserve.core import Request
from foreserve.ports import Launcher
from foreserve.running import Running
from foreserve.settings import MachineSettings, ServerSettings, StateSettings
from foreserve.simulation.drive import Drive
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.twin import Twin
from foreserve.traces.row import TraceRow


@dataclass(frozen=True)
class Stage:
    """The parts of one simulation."""

    running: Running
    launcher: Launcher
    drive: Drive
    twins: Mapping[str, Twin]


def set_stage(
    twins: Mapping[str, Twin],
    oracle: Oracle,
    launcher: Launcher,
    *,
    block_tokens: int,
    before: Callable[[Request, TraceRow], None],
    server: ServerSettings | None = None,
    machine: MachineSettings | None = None,
    state: StateSettings,
) -> Stage:
    """The twins as an app with this `state`: wired, not yet started.

    `before` hears of each request that is about to be submitted, as `Drive` tells it.
    """
    served: dict[str, Any] = dict(twins)
    running = App(server=server, state=state, machine=machine, **served).run(launcher)
    drive = Drive(running, twins, oracle, block_tokens=block_tokens, before=before)
    return Stage(running=running, launcher=launcher, drive=drive, twins=twins)


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
