"""Loads for the scaling benchmark: two weeks of ServeGen's clients in fourteen hours, and Azure's hour as it was.

ServeGen tells rates and lengths in windows of ten minutes. As in PreServe's evaluation time runs 24 times as fast, so
that a window is 25 s and a day an hour, and cold starts are as much shorter. One request in thousands is kept; so that
those make a load for a few replicas their lengths are multiplied, which keeps how the load in tokens rises and falls.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import data
from benchmarks.common import Report
from foreserve.loadgen.arrivals import generator
from foreserve.traces.open import open_trace
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.servegen import ServeGenTrace
from foreserve.traces.servegen_data import Client, read_clients

SERVEGEN: Final = "traces/servegen/servegen_language.tar.xz"

SPEED: Final = 24.0
DAY_S: Final = 86_400.0
LONGER: Final = 8
"""By how much lengths are multiplied: about 600 and 90 tokens on average, near those of Azure's conversations."""

MOST_INPUT, MOST_OUTPUT = 3_000, 1_000
"""What is longer is cut, to fit the context of 4,096 tokens."""


class Load(msgspec.Struct, frozen=True):
    """Requests in order of arrival (seconds). Implements `Trace`. `day_s` is how long a day is, in its time."""

    name: str
    arrival: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    tenant: NDArray[np.int64]
    span_s: float
    day_s: float
    skipped: int = 0

    @property
    def header(self) -> Header:
        return Header(name=self.name)

    def __len__(self) -> int:
        return len(self.arrival)

    def __iter__(self) -> Iterator[TraceRow]:
        columns = (self.arrival, self.input_tokens, self.output_tokens, self.tenant)
        for at, prompt, answer, tenant in zip(*(column.tolist() for column in columns), strict=True):
            yield TraceRow(arrival=at, input_tokens=prompt, output_tokens=answer, tenant=f"client-{tenant}")

    def between(self, start_s: float, end_s: float) -> Load:
        """A part of it; `start_s` becomes 0."""
        first, last = np.searchsorted(self.arrival, (start_s, end_s))
        return msgspec.structs.replace(
            self,
            arrival=self.arrival[first:last] - start_s,
            input_tokens=self.input_tokens[first:last],
            output_tokens=self.output_tokens[first:last],
            tenant=self.tenant[first:last],
            span_s=min(end_s, self.span_s) - start_s,
        )


def servegen(
    name: str, per_s: float, days: float, seed: int, clients: Collection[int] | None = None, longer: int = LONGER
) -> Load:
    """The first `days` of `m-small`, or of some of its clients, on average `per_s` requests in a compressed second.

    Without the data it is a made one with the same shape of days.
    """
    found = _clients()
    if found is None:
        return made(name, per_s, days, seed)
    path, every = found
    wanted = [client for client in every if clients is None or client.number in clients]
    trace = ServeGenTrace(path, wanted, seed).between(0.0, days * DAY_S)
    trace = trace.kept(per_s * days * DAY_S / SPEED / len(trace))
    return _load(name, iter(trace), days * DAY_S / SPEED, SPEED, longer)


def servegen_path() -> Path | None:
    """The archive, where it is on this machine."""
    path = data.folder() / SERVEGEN
    return path if path.exists() else None


@cache
def _clients() -> tuple[Path, list[Client]] | None:
    """Of `m-small`, from the archive."""
    path = servegen_path()
    if path is None:
        return None
    logging.getLogger("foreserve.traces.servegen_data").setLevel(logging.ERROR)  # clients without lengths are known
    return path, read_clients(path)


def azure(kind: str, report: Report) -> Load | None:
    """`conv` or `code`: an hour of the day, in its own time, each with the lengths that it had."""
    file = data.trace(f"azure_{kind}")
    if file is None:
        report.note("no Azure traces here (FORESERVE_DATA)")
        return None
    return _load(f"azure {kind}", iter(open_trace(file)), 3_500.0, 1.0, 1)


def made(name: str, per_s: float, days: float, seed: int) -> Load:
    """Requests that rise and fall by day, more on some days, with log-normal lengths."""
    rng = generator(seed)
    day_s = DAY_S / SPEED
    window_s = 600.0 / SPEED
    at = np.arange(0.0, days * day_s, window_s)
    shape = 1.0 + 0.7 * np.sin(2 * np.pi * at / day_s) + 0.15 * rng.standard_normal(len(at))
    counts = rng.poisson(np.maximum(shape, 0.05) * per_s * window_s)
    arrival = np.sort(np.repeat(at, counts) + rng.random(counts.sum()) * window_s)
    prompts = np.clip(rng.lognormal(5.9, 1.0, len(arrival)), 1, MOST_INPUT).astype(np.int64)
    answers = np.clip(rng.lognormal(4.0, 0.9, len(arrival)), 1, MOST_OUTPUT).astype(np.int64)
    tenants = rng.integers(0, 8, len(arrival))
    return Load(name, arrival, prompts, answers, tenants, span_s=days * day_s, day_s=day_s)


def _load(name: str, rows: Iterator[TraceRow], span_s: float, speed: float, longer: int) -> Load:
    """All rows that ask for anything."""
    columns: list[tuple[float, int, int, int]] = []
    for row in rows:
        if row.input_tokens < 1 or row.output_tokens < 1:
            continue
        tenant = int(row.tenant.rpartition("-")[2]) if row.tenant.startswith("client-") else 0
        prompt, answer = min(row.input_tokens * longer, MOST_INPUT), min(row.output_tokens * longer, MOST_OUTPUT)
        columns.append((row.arrival / speed, prompt, answer, tenant))
    at, prompts, answers, tenants = zip(*columns, strict=True)
    return Load(
        name,
        np.array(at),
        np.array(prompts, np.int64),
        np.array(answers, np.int64),
        np.array(tenants, np.int64),
        span_s=span_s,
        day_s=DAY_S / speed,
    )
