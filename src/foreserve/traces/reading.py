"""Rows out of lines: checked, put in order within a bounded buffer, with errors that name the file and the line."""

from __future__ import annotations

import csv
import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from foreserve.errors import ConfigError
from foreserve.traces.files import any_lines, count_lines
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.sorting import in_any_order

HOLD: Final = 10_000
"""Rows that are held back so that those which come a little late still find their place."""

MOST_TOKENS: Final = 10**9

BAD: Final = (ValueError, KeyError, TypeError, OverflowError, csv.Error, msgspec.MsgspecError)
"""What parsing a malformed line may raise."""

Numbered = tuple[int, TraceRow]
"""A row and the number of the line that it was read from."""


def check(row: TraceRow) -> TraceRow:
    """`row` as it is. Raises ValueError that says which of its numbers cannot be meant."""
    if not (row.arrival >= 0.0 and math.isfinite(row.arrival)):
        raise ValueError(f"`arrival` is {row.arrival}; it must be a finite number of seconds, at least 0")
    if not 0 <= row.input_tokens <= MOST_TOKENS:
        raise ValueError(f"`input_tokens` is {row.input_tokens}; valid: 0 to {MOST_TOKENS}")
    if not 0 <= row.output_tokens <= MOST_TOKENS:
        raise ValueError(f"`output_tokens` is {row.output_tokens}; valid: 0 to {MOST_TOKENS}")
    if row.most_tokens is not None and row.most_tokens < 1:
        raise ValueError(f"`most_tokens` is {row.most_tokens}; it must be at least 1")
    if row.deadline_s is not None and not row.deadline_s > 0.0:
        raise ValueError(f"`deadline_s` is {row.deadline_s}; it must be above 0")
    for name in ("seconds", "first_s", "total_s"):
        value = getattr(row, name)
        if value is not None and not (value >= 0.0 and math.isfinite(value)):
            raise ValueError(f"`{name}` is {value}; it must be a finite number of seconds, at least 0")
    if not math.isfinite(row.utility):
        raise ValueError(f"`utility` is {row.utility}; it must be finite")
    return row


def in_order(rows: Iterable[Numbered], late: Callable[[int, str], None], hold: int = HOLD) -> Iterator[TraceRow]:
    """The rows by arrival, equal ones as they came. `late(line, words)` hears of one that came too late to be put in.

    At most `hold` rows are held back, so memory is bounded however long the trace is.
    """
    heap: list[tuple[float, int, TraceRow]] = []
    last = -math.inf
    order = count()
    for number, row in rows:
        if row.arrival < last:
            late(
                number,
                f"arrival {row.arrival:g} s is earlier than that of a row over {hold} rows before it ({last:g} s); "
                "valid: rows in order of arrival, nearly; `foreserve trace convert --sort` puts any file in order",
            )
            continue
        entry = (row.arrival, next(order), row)
        if len(heap) < hold:
            heapq.heappush(heap, entry)
            continue
        last, _, first = heapq.heappushpop(heap, entry)
        yield first
    while heap:
        yield heapq.heappop(heap)[2]


class LineTrace:
    """A trace that is a file with a row in each line from `first_line` on, by arrival or, with `sort`, in any order.

    `parse` makes a row of a line (`None`: it is none, and no error) and raises one of `BAD`, with words, where it
    cannot. Implements `Trace`.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[str], TraceRow | None],
        *,
        header: Header | None = None,
        first_line: int = 1,
        skip_bad: bool = False,
        sort: bool = False,
    ) -> None:
        self.path = path
        self.header = Header(name=name_of(path)) if header is None else header
        self.skipped = 0
        self._parse = parse
        self._first_line = first_line
        self._skip_bad = skip_bad
        self._sort = sort
        self._lines: int | None = None

    def __iter__(self) -> Iterator[TraceRow]:
        self.skipped = 0
        if self._sort:
            return in_any_order(row for _, row in self.numbered())
        return in_order(self.numbered(), self._bad)

    def numbered(self) -> Iterator[Numbered]:
        """The rows as they stand in the file, each with its line's number."""
        parse = self._parse
        for number, text in any_lines(self.path, self._first_line):
            try:
                if isinstance(text, ValueError):
                    raise text
                row = parse(text)
                if row is not None:
                    check(row)
            except BAD as error:
                self._bad(number, words(error))
            else:
                if row is not None:
                    yield number, row

    def _bad(self, number: int, what: str) -> None:
        if not self._skip_bad:
            raise ConfigError(f"{self.path}: line {number}: {what}")
        self.skipped += 1

    def __len__(self) -> int:
        """The lines of a plain file, those that are blank or malformed among them; 0 of a compressed one."""
        if self._lines is None:
            self._lines = max(0, count_lines(self.path) - self._first_line + 1)
        return self._lines

    def __bool__(self) -> bool:
        return True


def words(error: Exception) -> str:
    """What went wrong with a line, in a few words."""
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}"
    return str(error)


def name_of(path: Path) -> str:
    """A file's name without what tells its form."""
    name = path.name
    for suffix in (".xz", ".gz", ".tar", ".csv", ".jsonl", ".ndjson", ".json"):
        name = name.removesuffix(suffix)
    return name
