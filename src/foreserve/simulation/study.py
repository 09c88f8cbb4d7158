"""One simulation from its parts: an app, a profile for each service, a trace. The house runs as it does live."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from threadpoolctl import threadpool_limits

from foreserve.app import App
from foreserve.core import Outcome, Request
from foreserve.dispatch.journal import CLOSED, Journal
from foreserve.engines.profile import EngineProfile
from foreserve.errors import ConfigError
from foreserve.registry import choices
from foreserve.settings import ServiceSettings, StateSettings
from foreserve.simulation import clock
from foreserve.simulation.checks import SETTLE_S, Checks, Finding
from foreserve.simulation.figures import Result
from foreserve.simulation.launcher import SimulatedLauncher
from foreserve.simulation.measured import Measured
from foreserve.simulation.need import Need
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.past import Past
from foreserve.simulation.replica import SimulatedConnection
from foreserve.simulation.stage import FaultPlan, set_stage
from foreserve.simulation.summary import span
from foreserve.simulation.survey import Survey, begun
from foreserve.simulation.twin import Twin, can_be_simulated
from foreserve.simulation.verdict import nothing_done, ordered
from foreserve.simulation.windows import width_for
from foreserve.traces.row import Trace, TraceRow

log = logging.getLogger(__name__)

MOST_TRAININGS: Final = 40
LEAST_TRAININGS: Final = 4
ROWS_PER_TRAINING: Final = 5_000
"""A length model is trained about once for so many rows, within these bounds: each training takes real time, up to half
a second, in which so many rows are simulated."""

PROGRESS_EVERY: Final = 256

MOST_AFTER_S: Final = 86_400.0
"""Simulated seconds after the last arrival in which everything has to have ended; the ledger tells what had not."""


class NoProfile(ConfigError):
    """A service that can be simulated, and nothing tells how long its engine takes."""

    def __init__(self, service: str) -> None:
        super().__init__(
            f"service {service!r} has no engine profile; measure one with `foreserve calibrate` and name it with "
            f"--profile {service}=FILE"
        )
        self.service = service


def simulate(
    app: App,
    profiles: Mapping[str, EngineProfile],
    trace: Trace,
    *,
    seed: int = 0,
    faults: FaultPlan | None = None,
    progress: Callable[[int], None] | None = None,
    observers: Sequence[Callable[[Outcome], None]] = (),
    surveyed: Survey | None = None,
    name: str = "",
    notes: Sequence[str] = (),
    decisions: Path | None = None,
    past: Past | None = None,
) -> Result:
    """Play a trace to an app on a virtual clock and tell how it went. The same arguments give the same Result.

    `profiles` are by service. `seed` is noted down with the result: it is that of `faults`, of what made the trace, and
    of the true lengths that a recording's rows lack. `progress` hears now and then how many requests have ended,
    `observers` every outcome. `surveyed` saves a reading of the trace where the caller has done it; `notes` are put
    before the result's own; decisions are recorded in `decisions`. Of the `past`, which ends where the trace begins, it
    is learned how the load goes and how long answers are. Raises ConfigError for a service without a profile,
    a wrong setting and a row of the trace that cannot be played; LedgerError, after any run, if a request was lost or
    ended twice.
    """
    if surveyed is None:
        trace, seen = begun(trace)
    else:
        seen = surveyed
    oracle = Oracle()
    twins = make_twins(app, profiles, oracle, seen)
    main = _run(app, twins, oracle, trace, seen, seed, faults, progress, observers, decisions, past)
    # Small matrices are slower on several cores, far slower beside other work, and would be summed in another order.
    with threadpool_limits(1, user_api="blas"):
        measured, preemptions, findings, found = clock.run(
            main, epoch=trace.header.epoch or (0.0 if past is None else past.span_s)
        )
    services = measured.services(preemptions)
    odd = [
        words
        for each, service in services.items()
        for words in nothing_done(service.tally, f"{name}, {each}" if name else each)
    ]
    return Result(
        name=name,
        trace=trace.header.name,
        epoch=trace.header.epoch,
        seed=seed,
        start_s=measured.began,
        span_s=measured.last_arrival,
        ended_s=max(measured.last_end, measured.last_arrival),
        settings={each: _shown(app.services[each].settings) for each in twins},
        total=measured.total(),
        services=services,
        notes=ordered(
            [
                *odd,
                *notes,
                *missing(trace),
                *([] if past is None else [learned(past)]),
                *remarks(app, twins, seen),
                *([] if faults is None else [happened(faults)]),
                *found,
            ]
        ),
        findings=[f"{each.check} at {each.at:.3f} s: {each.words}" for each in findings],
    )


def simulated_state(app: App, decisions: Path | None) -> StateSettings:
    """Nothing is kept of a simulation but, where asked for, its decisions: as many as the app would record."""
    told = None if decisions is None else str(decisions)
    return StateSettings(history=False, decisions=told, decisions_mb=app.settings.state.decisions_mb)


def make_twins(app: App, profiles: Mapping[str, EngineProfile], oracle: Oracle, seen: Survey) -> dict[str, Twin]:
    """The services of `app` that a trace can be played to. Raises ConfigError for what stands in the way of a run."""
    twins: dict[str, Twin] = {}
    for name, kind in app.services.items():
        if not can_be_simulated(kind):
            continue
        if name not in profiles:
            raise NoProfile(name)
        if kind.settings.bounds[1] == 0:
            raise ConfigError(
                f"service {name!r} has no replicas: nothing would be served; set `{name}.replicas` to 1 or more, or to "
                "[0, 1] for one that is started when a request comes"
            )
        twin = Twin(name, kind, profiles[name], oracle)
        foresight = twin.foreseer.settings
        if (least_s := seen.span_s / most_trainings(seen.rows)) > foresight.train_s:
            twin.foreseer.settings = msgspec.structs.replace(foresight, train_s=least_s)
        twins[name] = twin
    if not twins:
        kinds = ", ".join(f"{name} is a {kind.name}" for name, kind in app.services.items())
        raise ConfigError(f"the app has no service that can be simulated ({kinds}); valid: llm, upstream")
    for asked in seen.services:
        if asked is not None and asked not in twins:
            raise ConfigError(
                f"the trace has requests for a service {asked!r}, which the app does not have or which cannot be "
                f"simulated{choices(asked, twins)}; `--service {next(iter(twins))}` plays all requests to that one, "
                f"`--map {asked}={next(iter(twins))}` those of this name"
            )
    return twins


def missing(trace: Trace) -> list[str]:
    """What a recording says that it has not, in words."""
    lost = trace.header.lost
    return [f"{lost:,} more requests came while the trace was recorded and are not in it"] if lost else []


def learned(past: Past) -> str:
    """What was learned from before the trace, in words."""
    return f"{span(past.span_s)} before it were not played: loads and lengths were learned from them"


def most_trainings(rows: int) -> int:
    """Of one length model in a run over so many rows, about."""
    return min(max(rows // ROWS_PER_TRAINING, LEAST_TRAININGS), MOST_TRAININGS)


def remarks(app: App, twins: Mapping[str, Twin], seen: Survey) -> list[str]:
    """What was left out or changed, in words."""
    found = [
        f"{name} is left out: a {kind.name} cannot be simulated yet"
        for name, kind in app.services.items()
        if name not in twins
    ]
    for name, twin in twins.items():
        set_s = twin.settings.foresight.train_s
        train_s = twin.foreseer.settings.train_s
        if train_s > set_s:
            found.append(
                f"{name}: its length model is trained every {train_s:.0f} s, not every {set_s:g} s, so that a trace of "
                f"{seen.span_s / 3600:.1f} h and {seen.rows:,} requests takes at most "
                f"{most_trainings(seen.rows)} trainings"
            )
    if (remark := seen.lengths.remark()) is not None:
        found.append(remark)
    return found


def happened(faults: FaultPlan) -> str:
    """What went wrong in a run, in words."""
    told = ", ".join(f"{name} {n:,} times" if n > 1 else f"{name} once" for name, n in sorted(faults.struck.items()))
    return f"faults: {told}" if told else "faults: none struck"


async def _run(
    app: App,
    twins: Mapping[str, Twin],
    oracle: Oracle,
    trace: Trace,
    seen: Survey,
    seed: int,
    faults: FaultPlan | None,
    progress: Callable[[int], None] | None,
    observers: Sequence[Callable[[Outcome], None]],
    decisions: Path | None,
    past: Past | None,
) -> tuple[Measured, dict[str, int], list[Finding], list[str]]:
    """What was measured, how often each service's engines preempted, under faults what did not hold, and notes."""
    raised: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(_error(context)))
    launcher = SimulatedLauncher()
    started: list[SimulatedConnection] = []
    launcher.launched.append(started.append)

    def before(request: Request, row: TraceRow) -> None:
        measured.came(request, row)
        if checks is not None:
            checks.submitted(request)

    stage = set_stage(
        twins,
        oracle,
        launcher,
        block_tokens=trace.header.block_tokens,
        before=before,
        server=app.settings.server,
        machine=app.settings.machine,
        state=simulated_state(app, decisions),
    )
    running = stage.running
    checks = None if faults is None else Checks(stage, oracle)
    needs = {name: Need(twin.profile) for name, twin in twins.items()}
    measured = Measured(running, needs, seen.tenants, width_for(seen.span_s, seen.rows))
    launcher.launched.append(measured.launched)
    running.observers += [measured.ended, *observers]
    running.scaled.append(measured.scaled)
    if progress is not None:
        running.observers.append(_counted(progress))
    if faults is not None:
        faults.launching(launcher)
    await running.start()
    if past is not None:
        await past.learned_by(running, twins, trace.header.block_tokens)
    if checks is not None:
        checks.begin()
    try:
        if faults is not None:
            faults.begin(stage)
        measured.start()
        try:
            async with asyncio.timeout(seen.span_s + MOST_AFTER_S):
                rows = seen.lengths.completed(iter(trace), seed)
                await stage.drive.play(rows if faults is None else faults.rows(rows))
        except TimeoutError:
            log.error("%d requests had not ended %g s after the trace", len(running.ledger.open), MOST_AFTER_S)
        finally:
            measured.stop()
        if raised:  # a callback's error would only be logged live; here it spoils the figures
            raise raised[0]
        running.ledger.check(idle=True)  # before the stop, which would end what is left
        if checks is not None:
            await checks.settle(SETTLE_S)
        await running.stop(0.0)
        if checks is not None:
            checks.left()
    finally:
        if checks is not None:
            checks.leave()
    preemptions = dict.fromkeys(twins, 0)
    for replica in started:
        preemptions[replica.name.rpartition("/")[0]] += replica.preemptions
    return measured, preemptions, [] if checks is None else checks.findings, _recorded(running.decisions)


def _recorded(decisions: Journal | None) -> list[str]:
    """A note where not all decisions were recorded."""
    if decisions is None or decisions.stopped == CLOSED:
        return []
    return [f"the recording of decisions {decisions.path} is not whole: {decisions.stopped}"]


def _shown(settings: ServiceSettings) -> dict[str, Any]:
    """As results have them: variables of an environment may be secret, and mean nothing to a simulation."""
    shown: dict[str, Any] = msgspec.to_builtins(settings)
    return {**shown, "env": dict.fromkeys(settings.env, "…")}


def _error(context: dict[str, Any]) -> BaseException:
    return context.get("exception") or RuntimeError(context["message"])


def _counted(progress: Callable[[int], None]) -> Callable[[Outcome], None]:
    ended = 0

    def hear(outcome: Outcome) -> None:
        nonlocal ended
        ended += 1
        if ended % PROGRESS_EVERY == 0:
            progress(ended)

    return hear
