"""Runs of `foreserve simulate`: all checked, then one after the other, then told in every form that was asked for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from foreserve.cli.bench_options import check_writable
from foreserve.cli.simulate_table import Bar, show
from foreserve.core import Outcome
from foreserve.errors import ConfigError
from foreserve.simulation.comparison import Variant, check
from foreserve.simulation.fault_kinds import words_of
from foreserve.simulation.faults import Faults
from foreserve.simulation.figures import Result
from foreserve.simulation.past import Past
from foreserve.simulation.report import page
from foreserve.simulation.study import simulate
from foreserve.simulation.survey import Survey, begun
from foreserve.simulation.sweep import MIXED, faults_of
from foreserve.simulation.timeline import Timeline
from foreserve.traces.row import Trace


class Outputs(msgspec.Struct, frozen=True):
    """What is written beside the table. `json` may be `-`."""

    report: Path | None = None
    timeline: Path | None = None
    timeline_requests: int = 20_000
    json: str | None = None
    decisions: Path | None = None

    def check(self, runs: int, inputs: Iterable[Path]) -> None:
        """Whether `runs` runs can write it all, each file once, and over nothing that is read. Raises ConfigError."""
        read = {path.expanduser().resolve() for path in inputs}
        folders = {path for path in read if path.is_dir()}
        written: dict[Path, str] = {}
        for option, path in self._files(runs):
            check_writable(path)
            real = path.expanduser().resolve()
            if real in read or not folders.isdisjoint(real.parents):
                raise ConfigError(f"{option}: {path} is read by this command and would be lost; name another file")
            if real in written:
                raise ConfigError(f"{option}: {path} is written for {written[real]} too; name another file")
            written[real] = option

    def _files(self, runs: int) -> Iterator[tuple[str, Path]]:
        """Of every option and run, with what is put aside where decisions had been recorded before."""
        if self.json is not None and self.json != "-":
            yield "--json", Path(self.json)
        if self.report is not None:
            yield "--report", self.report
        for at in range(runs):
            if self.timeline is not None:
                yield "--timeline", _own(self.timeline, at)
            if self.decisions is not None:
                decisions = _own(self.decisions, at)
                yield "--record-decisions", decisions
                yield "--record-decisions", decisions.with_name(f"{decisions.name}.previous")


def play(
    console: Console,
    trace: Trace,
    runs: Sequence[Variant],
    seed: int,
    outputs: Outputs,
    *,
    quiet: bool,
    faults: str | None = None,
    fault_seed: int = 0,
    price: float | None = None,
    past: Past | None = None,
) -> list[Result]:
    """Raises ConfigError before the first run for whatever is wrong with any of them."""
    with Bar(console, quiet) as bar:
        trace, seen = bar.reading(trace, begun)
        if not seen.rows:
            raise ConfigError(f"{trace.header.name or 'the trace'}: there is no request in it, or none is left of it")
        for run in runs:
            check(run, seen)
        plans = [None if faults is None else Faults(faults_of(faults, fault_seed), fault_seed) for _ in runs]
        notes = [] if faults is None or faults.strip() != MIXED else _drawn(plans[0], fault_seed)
        results = [
            _run(run, at, trace, seen, seed, outputs, bar, plan, past)
            for at, (run, plan) in enumerate(zip(runs, plans, strict=True))
        ]
    results = [msgspec.structs.replace(each, notes=[*each.notes, *notes]) for each in results]
    if price is not None:
        results = [result.priced(price) for result in results]
    if not quiet:
        show(console, trace, seen, results, bar.seconds)
    if outputs.report is not None:
        outputs.report.write_text(page(trace, seen, results), encoding="utf-8")
    if outputs.json is not None:
        _write(outputs.json, document(trace, seen, seed, results))
    return results


def _drawn(plan: Faults | None, seed: int) -> list[str]:
    """Words that bring each of the faults again which `mixed` has drawn."""
    assert plan is not None
    return [f"drawn: --faults '{words_of([fault])}' --fault-seed {seed}" for fault in plan.faults]


def _run(
    run: Variant,
    at: int,
    trace: Trace,
    seen: Survey,
    seed: int,
    outputs: Outputs,
    bar: Bar,
    plan: Faults | None,
    past: Past | None,
) -> Result:
    with contextlib.ExitStack() as stack:
        timeline = None
        if outputs.timeline is not None:
            timeline = stack.enter_context(Timeline(_own(outputs.timeline, at), outputs.timeline_requests))

        def played(heard: Callable[[Outcome], None]) -> Result:
            return simulate(
                run.app,
                run.profiles,
                trace,
                seed=seed,
                faults=plan,
                observers=[heard] if timeline is None else [heard, timeline.ended],
                surveyed=seen,
                name=run.name,
                notes=run.notes,
                decisions=None if outputs.decisions is None else _own(outputs.decisions, at),
                past=past,
            )

        result = bar.timed(run.name, seen.rows, played)
        if timeline is not None:
            timeline.courses(result)
    return result


def _own(path: Path, at: int) -> Path:
    """The file of one of several runs."""
    return path if not at else path.with_name(f"{path.stem}.{at + 1}{path.suffix}")


def document(trace: Trace, seen: Survey, seed: int, results: Sequence[Result]) -> bytes:
    """The figures as JSON, the same bytes for the same command: there are no real times in it."""
    data = {
        "tool": "foreserve simulate",
        "trace": {"name": trace.header.name, "epoch": trace.header.epoch, **seen.told()},
        "seed": seed,
        "runs": list(results),
    }
    return msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n"


def _write(where: str, written: bytes) -> None:
    if where == "-":
        sys.stdout.write(written.decode())
    else:
        Path(where).write_bytes(written)
