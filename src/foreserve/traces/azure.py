"""The Azure LLM inference traces: CSV with a time and two lengths."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final

from foreserve.errors import ConfigError
from foreserve.traces.columns import YEAR_2000
from foreserve.traces.files import any_lines, lines
from foreserve.traces.reading import BAD, HOLD, LineTrace, name_of, words
from foreserve.traces.row import Header, TraceRow

COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
LOOKS: Final = f"CSV with {','.join(COLUMNS)}"


def recognise(text: str) -> bool:
    """Whether this is the first line of such a trace."""
    return tuple(cell.strip() for cell in text.split(",")[: len(COLUMNS)]) == COLUMNS


def open_azure(path: Path, *, skip_bad: bool = False, sort: bool = False) -> LineTrace:
    """Times are dates (UTC where they name no zone) or seconds; the earliest is arrival 0 and the header's epoch."""
    head = next(lines(path), None)
    if head is None or not recognise(head[1]):
        raise ConfigError(f"{path}: line 1: columns are {head[1] if head else ''!r}; expected {','.join(COLUMNS)}")
    start = _start(path, head[0] + 1, skip_bad, None if sort else HOLD)

    def parse(text: str) -> TraceRow:
        at, context, generated = cells(text)
        if (arrival := seconds(at) - start) < 0.0:
            raise ValueError(f"time {at} is earlier than the first {HOLD} rows' (rows must be in order, nearly)")
        lengths = [_tokens(name, cell) for name, cell in zip(COLUMNS[1:], (context, generated), strict=True)]
        return TraceRow(arrival=round(arrival, 6), input_tokens=lengths[0], output_tokens=lengths[1])

    header = Header(name=name_of(path), epoch=start if start >= YEAR_2000 else 0.0)
    return LineTrace(path, parse, header=header, first_line=head[0] + 1, skip_bad=skip_bad, sort=sort)


def _start(path: Path, first_line: int, skip_bad: bool, most: int | None) -> float:
    """The earliest time among the first `most` rows, which may still change places."""
    start = math.inf
    for number, text in islice(any_lines(path, first_line), most):
        try:
            if isinstance(text, ValueError):
                raise text
            start = min(start, seconds(cells(text)[0]))
        except BAD as error:
            if not skip_bad:
                raise ConfigError(f"{path}: line {number}: {words(error)}") from None
    if start == math.inf:
        raise ConfigError(f"{path}: no arrivals in it")
    return start


def cells(text: str) -> list[str]:
    """The three that count. Raises ValueError for a line that has fewer."""
    found = [cell.strip() for cell in text.split(",")]
    if len(found) < len(COLUMNS):
        raise ValueError(f"{len(found)} columns; expected {len(COLUMNS)}")
    return found[: len(COLUMNS)]


def _tokens(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"column {name!r}: {text!r} is no whole number of tokens") from None


def seconds(text: str) -> float:
    """A number, or a date as seconds since 1970."""
    try:
        value = float(text)
    except ValueError:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"column {COLUMNS[0]!r}: {text!r} is no time") from None
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value):
        raise ValueError(f"time is {text}; expected a finite number")
    return value
