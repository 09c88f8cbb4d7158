"""The statistics of a trace as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from foreserve.traces.statistics import Spread, Statistics

MOST_NAMES = 10


def report(found: Statistics) -> Group:
    """Everything that `foreserve trace show` prints."""
    parts: list[Table | Text] = [_facts(found)]
    lengths = {"input tokens": found.input_tokens, "output tokens": found.output_tokens}
    if any(lengths.values()):
        parts.append(_spreads("length", lengths, lambda value: f"{value:,.0f}"))
    times = {"until the first token": found.first_s, "until the end": found.total_s, "on a replica": found.seconds}
    if any(times.values()):
        parts.append(_spreads("seconds", times, lambda value: f"{value:,.3f}"))
    for title, counts in (("tenant", found.tenants), ("service", found.services), ("outcome", found.outcomes)):
        if len(counts) > (title != "outcome"):
            parts.append(_names(title, counts))
    return Group(*parts)


def _facts(found: Statistics) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, title=Text(found.name or "trace"), title_justify="left")
    for name, value in _told(found):
        table.add_row(name, value)
    return table


def _told(found: Statistics) -> Iterator[tuple[str, str]]:
    skipped = f" ({found.skipped:,} malformed rows left out)" if found.skipped else ""
    yield "requests", f"{found.requests:,}{skipped}"
    if found.lost:
        yield "lost", f"{found.lost:,} more came while it was recorded and are missing"
    if found.epoch:
        yield "begins", datetime.fromtimestamp(found.epoch, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield "duration", duration(found.duration_s)
    if found.rate is not None:
        yield "rate", f"{found.rate:,.3g} requests/s"
    if found.gap_cv is not None:
        yield "burstiness", f"{found.gap_cv:.2f} (coefficient of variation of the gaps; Poisson has 1)"
    if found.peak_minute is not None:
        yield "busiest minute", f"{found.peak_minute:.2f} times the mean rate"
    if found.prefix_seen is not None:
        tokens = "" if found.prefix_seen_tokens is None else f", {found.prefix_seen_tokens:.1%} of all input tokens"
        yield "prefix blocks seen before", f"{found.prefix_seen:.1%} of {found.prefix_blocks:,}{tokens}"


def duration(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for name, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"


def _spreads(title: str, spreads: dict[str, Spread | None], told: Callable[[float], str]) -> Table:
    table = Table(title_justify="left")
    table.add_column(title)
    for name in ("requests", "mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right")
    for name, spread in spreads.items():
        if spread is not None:
            values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.most)
            table.add_row(name, f"{spread.count:,}", *(told(value) for value in values))
    return table


def _names(title: str, counts: dict[str, int]) -> Table:
    table = Table()
    table.add_column(title)
    table.add_column("requests", justify="right")
    table.add_column("share", justify="right")
    total = sum(counts.values())
    for name, count in list(counts.items())[:MOST_NAMES]:
        table.add_row(Text(name), f"{count:,}", f"{count / total:.1%}")
    if (more := len(counts) - MOST_NAMES) > 0:
        rest = sum(list(counts.values())[MOST_NAMES:])
        table.add_row(f"{more:,} more", f"{rest:,}", f"{rest / total:.1%}")
    return table
