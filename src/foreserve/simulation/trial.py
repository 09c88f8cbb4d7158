"""One simulation under faults, with every check: what a sweep repeats seed by seed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from foreserve.app import App
from foreserve.core import Outcome, OutcomeKind
from foreserve.engines.profile import EngineProfile
from foreserve.errors import EngineStartError
from foreserve.ports import Launcher
from foreserve.running import Running
from foreserve.settings import StateSettings
from foreserve.simulation.checks import SETTLE_S, Checks, Finding
from foreserve.simulation.clock import run
from foreserve.simulation.histogram import Histogram
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.stage import FaultPlan, Happened, set_stage
from foreserve.simulation.study import make_twins, simulated_state
from foreserve.simulation.survey import Survey
from foreserve.simulation.twin import Twin
from foreserve.traces.row import Header, TraceRow

NOT_STARTED: Final = "not started"
"""The outcome of a simulation whose replicas were all too late."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one simulation showed: `findings` is empty when all held.

    `digest` is of every outcome, in order: equal digests are equal runs.
    """

    findings: list[Finding]
    outcomes: dict[str, int]
    happened: list[Happened]
    """The first of what went wrong; `struck` counts all of it by fault."""
    struck: dict[str, int]
    seconds: float
    digest: str
    ttft_p99: float | None = None
    """Of what was done, in seconds."""


def try_out(
    app: App,
    profiles: Mapping[str, EngineProfile],
    rows: Iterator[TraceRow],
    plan: FaultPlan | None,
    *,
    launcher: Launcher,
    header: Header | None = None,
    seen: Survey | None = None,
    decisions: Path | None = None,
    settle_s: float = SETTLE_S,
) -> Trial:
    """Play `rows` to the app's twins under a plan of faults, on a virtual loop of its own.

    Keeps nothing on disk but, where asked for, a recording of its `decisions`.

    `profiles` is by the services' names; `header` and `seen` are the trace's, where the rows are of one. All replicas
    are to be back `settle_s` after the last outcome. Raises what the app's start may: ConfigError, EngineStartError.
    """
    oracle = Oracle()
    if seen is not None:
        twins = make_twins(app, profiles, oracle, seen)
    else:
        twins = {name: Twin(name, kind, profiles[name], oracle) for name, kind in app.services.items()}
    header = Header() if header is None else header
    state = simulated_state(app, decisions)
    return run(_play(twins, oracle, rows, plan, launcher, header, state, settle_s), epoch=header.epoch)


async def _play(
    twins: Mapping[str, Twin],
    oracle: Oracle,
    rows: Iterator[TraceRow],
    plan: FaultPlan | None,
    launcher: Launcher,
    header: Header,
    state: StateSettings,
    settle_s: float,
) -> Trial:
    if plan is not None:
        plan.launching(launcher)
        rows = plan.rows(rows)
    stage = set_stage(
        twins,
        oracle,
        launcher,
        block_tokens=header.block_tokens,
        before=lambda request, _: checks.submitted(request),
        state=state,
    )
    running, drive = stage.running, stage.drive
    checks = Checks(stage, oracle)
    digest = hashlib.sha256()
    ttft = Histogram()
    encode = msgspec.json.Encoder(order="sorted").encode

    def heard(outcome: Outcome) -> None:
        digest.update(encode(outcome))
        if outcome.kind is OutcomeKind.DONE and outcome.first is not None:
            ttft.add(outcome.first - outcome.arrival)

    running.observers.append(heard)
    started = await _start(running)
    if started:
        checks.begin()
        asyncio.get_running_loop().set_exception_handler(checks.raised)
        if plan is not None:
            plan.begin(stage)
        played = asyncio.create_task(drive.play(rows))
        await asyncio.wait([played, checks.hung], return_when=asyncio.FIRST_COMPLETED)
        if played.done():
            await played
        else:
            played.cancel()
        await checks.settle(settle_s)
        await running.stop(0.0)
    seconds = checks.last_ended
    checks.left()
    outcomes = {kind.value: count for kind, count in sorted(checks.outcomes.items())}
    return Trial(
        findings=checks.findings,
        outcomes=outcomes if started else {NOT_STARTED: 1},
        happened=[] if plan is None else plan.happened,
        struck={} if plan is None else dict(plan.struck),
        seconds=seconds,
        digest=digest.hexdigest(),
        ttft_p99=ttft.quantile(0.99),
    )


async def _start(running: Running) -> bool:
    """Whether some replica was ready in time: where all starts are late there is nothing to play to."""
    try:
        await running.start()
    except EngineStartError:
        return False
    return True
