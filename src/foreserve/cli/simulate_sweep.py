"""`foreserve simulate --faults … --seeds N`: the command's app and trace under many seeds of faults."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from foreserve.appfile import load_app_file
from foreserve.cli import trace_words as words
from foreserve.cli.sweep import run_sweep
from foreserve.simulation.comparison import Variant, check, variants
from foreserve.simulation.survey import Survey, begun
from foreserve.simulation.sweep import Swept, faults_of, of_app, random_one
from foreserve.simulation.variants import assignments
from foreserve.traces.row import Trace

READING: Final = (
    ("--format", "auto"),
    ("--skip-bad", False),
    ("--sort", False),
    ("--per-second", None),
    ("--from", "0"),
    ("--to", None),
    ("--rate", 1.0),
    ("--speed", 1.0),
    ("--limit", None),
)
"""The options of reading a trace and their defaults, in the order of `trace_words.read`."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of app and trace, so that another process can do the same.

    `reading` are the arguments of `trace_words.read` but for the seed.
    """

    app: str
    sets: tuple[str, ...]
    profiles: tuple[str, ...]
    trace: str
    reading: tuple[Any, ...]
    seed: int
    faults: str
    service: str | None = None
    maps: tuple[str, ...] = ()

    def run(self) -> Variant:
        """The run, made anew. Raises ConfigError."""
        return variants(load_app_file(self.app), Path(self.app).name, assignments(self.sets), [], self.profiles)[0]

    def opened(self) -> Trace:
        """The trace, which is the same for all seeds of a sweep. Raises ConfigError."""
        return words.read(Path(self.trace), *(*self.reading, self.seed, self.service, self.maps))


def sweep(console: Console, asked: Asked, seeds: Sequence[int], *, jobs: int, quiet: bool) -> int:
    """How many seeds failed. Raises ConfigError before the first for whatever is wrong."""
    one = one_of(asked)
    return run_sweep(
        console, one, seeds, functools.partial(command, asked), jobs=jobs, quiet=quiet, figures=True
    ).failed


def sweep_random(console: Console, faults: str, seeds: Sequence[int], *, jobs: int, quiet: bool) -> int:
    """How many seeds failed, each with an app, an engine and a load of its own. Raises ConfigError as `sweep` does."""
    faults_of(faults, 0)
    one = functools.partial(random_one, words=faults)

    def again(seed: int) -> str:
        line = ["foreserve", "simulate", "--faults", faults, "--fault-seed", str(seed), "--seeds", "1"]
        return shlex.join(line)

    return run_sweep(console, one, seeds, again, jobs=jobs, quiet=quiet).failed


def one_of(asked: Asked) -> Callable[[int], Swept]:
    """What simulates one seed, in any process. Raises ConfigError for whatever is wrong, before the first."""
    faults_of(asked.faults, 0)
    check(asked.run(), _read(asked)[1])
    return functools.partial(_one, asked)


def _one(asked: Asked, seed: int) -> Swept:
    trace, seen = _read(asked)
    run = asked.run()
    return of_app(seed, app=lambda: run.app, profiles=run.profiles, trace=trace, seen=seen, words=asked.faults)


_seen: list[tuple[Asked, Trace, Survey]] = []


def _read(asked: Asked) -> tuple[Trace, Survey]:
    """Read once in each process."""
    if not _seen or _seen[0][0] != asked:
        _seen[:] = [(asked, *begun(asked.opened()))]
    return _seen[0][1:]


def command(asked: Asked, seed: int) -> str:
    """The command line that does this seed of faults alone."""
    line = ["foreserve", "simulate", asked.trace, "--app", asked.app]
    line += [word for each in asked.sets for word in ("--set", each)]
    line += [word for each in asked.profiles for word in ("--profile", each)]
    for (name, default), value in zip(READING, asked.reading, strict=True):
        if value != default:
            line += [name] if value is True else [name, str(value)]
    line += [] if asked.service is None else ["--service", asked.service]
    line += [word for each in asked.maps for word in ("--map", each)]
    line += ["--seed", str(asked.seed)] if asked.seed else []
    return shlex.join([*line, "--faults", asked.faults, "--fault-seed", str(seed), "--seeds", "1"])
