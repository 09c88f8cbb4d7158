"""The same simulation under many seeds of faults, one after the other or in processes side by side."""

from __future__ import annotations

import functools
import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import msgspec

from foreserve.app import App
from foreserve.core import OutcomeKind
from foreserve.engines.profile import EngineProfile
from foreserve.ports import Launcher
from foreserve.simulation.checks import Finding
from foreserve.simulation.fault_kinds import Fault, read_faults
from foreserve.simulation.faults import Faults
from foreserve.simulation.launcher import SimulatedLauncher
from foreserve.simulation.mixed import mixed, mixed_faults
from foreserve.simulation.survey import Survey
from foreserve.simulation.trial import Trial, try_out
from foreserve.traces.drawing import generator
from foreserve.traces.row import Trace

MIXED = "mixed"
"""In place of faults by name: a random combination of them, with random parameters, from each seed."""


class Swept(msgspec.Struct, frozen=True, kw_only=True):
    """One seed of a sweep: what it showed. `findings` is empty when all held."""

    seed: int
    findings: list[Finding]
    outcomes: dict[str, int]
    happened: dict[str, int]
    """How often each fault struck."""
    digest: str
    ttft_p99: float | None = None
    """Of what was done, in seconds."""

    def done(self) -> float | None:
        """The share of all requests that were done; `None` where none came."""
        requests = sum(self.outcomes.values())
        return self.outcomes.get(OutcomeKind.DONE.value, 0) / requests if requests else None


class Summary(msgspec.Struct, kw_only=True):
    """All seeds together, by outcome and by fault."""

    seeds: int = 0
    failed: int = 0
    requests: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    happened: Counter[str] = msgspec.field(default_factory=Counter)
    with_fault: Counter[str] = msgspec.field(default_factory=Counter)
    """In how many seeds each fault struck."""
    findings: Counter[str] = msgspec.field(default_factory=Counter)
    """By check."""
    done: list[tuple[float, int]] = []
    ttft_p99: list[tuple[float, int]] = []
    """Of each seed that has it: the share that was done, seconds, with the seed."""

    def add(self, swept: Swept) -> None:
        """One seed more."""
        self.seeds += 1
        self.failed += bool(swept.findings)
        self.requests += sum(swept.outcomes.values())
        self.outcomes.update(swept.outcomes)
        self.happened.update(swept.happened)
        self.with_fault.update(swept.happened.keys())
        self.findings.update({finding.check for finding in swept.findings})
        if (done := swept.done()) is not None:
            self.done.append((done, swept.seed))
        if swept.ttft_p99 is not None:
            self.ttft_p99.append((swept.ttft_p99, swept.seed))


def sweep(one: Callable[[int], Swept], seeds: Sequence[int], *, jobs: int = 1) -> Iterator[Swept]:
    """What each seed shows, in order of `seeds`. With `jobs` above 1 `one` must be picklable.

    Whatever `one` raises ends the sweep: what a simulation raises is a finding (see `swept`).
    """
    one = functools.partial(_quietly, one)
    if jobs <= 1:
        yield from map(one, seeds)
        return
    # Not forked: this process may have threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one, seeds, chunksize=max(1, min(16, len(seeds) // (4 * jobs))))


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing to the console meanwhile: replicas are lost by the thousand. Errors are findings."""
    logger, nowhere = logging.getLogger("foreserve"), logging.NullHandler()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.ERROR)
    logger.addHandler(nowhere)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(nowhere)
        logger.propagate = propagate


def _quietly(one: Callable[[int], Swept], seed: int) -> Swept:
    with quiet():
        return one(seed)


def swept(seed: int, trial: Callable[[], Trial]) -> Swept:
    """One trial as a sweep tells it; what it raises is a finding."""
    try:
        shown = trial()
    except Exception as error:
        raised = Finding(check="raised", at=0.0, words=f"{type(error).__name__}: {error}")
        return Swept(seed=seed, findings=[raised], outcomes={}, happened={}, digest="")
    return Swept(
        seed=seed,
        findings=shown.findings,
        outcomes=shown.outcomes,
        happened=shown.struck,
        digest=shown.digest,
        ttft_p99=shown.ttft_p99,
    )


def faults_of(words: str, seed: int) -> list[Fault]:
    """`words` as `--faults` has them, where `mixed` draws some from the seed. Raises ConfigError."""
    if words.strip() == MIXED:
        return mixed_faults(generator(seed, 0))
    return read_faults(words)


def random_one(seed: int, words: str = MIXED) -> Swept:
    """A random app, engine and load (see `mixed`), under faults of its own or those in `words`."""
    case = mixed(seed)
    faults = case.faults if words.strip() == MIXED else read_faults(words)
    return swept(
        seed,
        lambda: try_out(case.app(), case.profiles(), case.rows(), Faults(faults, seed), launcher=launcher()),
    )


def of_app(
    seed: int,
    *,
    app: Callable[[], App],
    profiles: Mapping[str, EngineProfile],
    trace: Trace,
    seen: Survey,
    words: str,
) -> Swept:
    """A user's app on a trace, under the faults in `words`. `app` makes it anew; `seen` is what was read of the trace.

    Bind all but the seed by `functools.partial` for `sweep`. Raises ConfigError where a run could not begin.
    """
    plan = Faults(faults_of(words, seed), seed)

    def play() -> Trial:
        rows = seen.lengths.completed(iter(trace), seed)
        return try_out(app(), profiles, rows, plan, launcher=launcher(), header=trace.header, seen=seen)

    return swept(seed, play)


def launcher() -> Launcher:
    """What starts the replicas of a sweep."""
    return SimulatedLauncher()
