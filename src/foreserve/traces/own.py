"""Our own traces: JSONL, perhaps with a `Header` first, a `TraceRow` in each line that follows."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from foreserve.errors import ConfigError
from foreserve.registry import choices
from foreserve.traces.files import lines, writing
from foreserve.traces.reading import MOST_TOKENS, LineTrace, name_of
from foreserve.traces.row import Header, Lost, Trace, TraceRow

LOOKS = '{"arrival": 0.25, "input_tokens": 374, "output_tokens": 44} in each line'

MOST_SPAN_S: Final = 400 * 86_400.0
"""No trace is longer: later arrivals are times since 1970, and a simulation of decades of idle time would not end."""

MOST_BLOCK_TOKENS = 65_536

log = logging.getLogger(__name__)

_header = msgspec.json.Decoder(Header)
_row = msgspec.json.Decoder(TraceRow)
_lost = msgspec.json.Decoder(Lost)
_BROKEN = re.compile(r'\s*\{\s*"(arrival|foreserve_trace)"\s*:')
_NOTE = '{"foreserve_trace":"lost"'
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NAMES = [field.name for field in msgspec.structs.fields(TraceRow)]


class _Earlier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `bench --trace` took before these traces had their form."""

    arrival: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None


_earlier = msgspec.json.Decoder(_Earlier)


def recognise(text: str) -> bool:
    """Whether this is the first line of such a trace."""
    try:
        fields = _fields.decode(text)
    except msgspec.MsgspecError:
        return _BROKEN.match(text) is not None  # its error is that line's, not that no format fits
    return "foreserve_trace" in fields or "arrival" in fields


def open_own(path: Path, *, skip_bad: bool = False, sort: bool = False) -> LineTrace:
    """A trace of ours. Without a header its name is the file's and its epoch is not known."""
    for number, text in lines(path):
        if '"foreserve_trace"' not in text:
            break
        try:
            header = _header.decode(text)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: line {number}: the header: {error}") from None
        if not 1 <= header.block_tokens <= MOST_BLOCK_TOKENS:
            raise ConfigError(
                f"{path}: line {number}: the header: `block_tokens` is {header.block_tokens}; "
                f"valid: 1 to {MOST_BLOCK_TOKENS}"
            )
        if not 0 <= header.lost <= MOST_TOKENS:
            raise ConfigError(f"{path}: line {number}: the header: `lost` is {header.lost}; it must be at least 0")
        return LineTrace(path, parse, header=header, first_line=number + 1, skip_bad=skip_bad, sort=sort)
    return LineTrace(path, parse, header=Header(name=name_of(path)), skip_bad=skip_bad, sort=sort)


def parse(text: str) -> TraceRow | None:
    """A line as a row; `None` for one that tells of rows that were lost. Raises ValueError or msgspec.MsgspecError."""
    if text.startswith(_NOTE):
        log.warning("%d requests are missing here: they were too many for who recorded", _lost.decode(text).rows)
        return None
    return within_span(_decoded(text))


def within_span(row: TraceRow) -> TraceRow:
    """`row` as it is. Raises ValueError when it comes later than any trace of ours lasts."""
    if row.arrival > MOST_SPAN_S:
        raise ValueError(
            f"`arrival` is {row.arrival:.15g}: expected seconds since the trace's start, at most 400 days; this looks "
            "like a time since 1970: use `foreserve trace import`"
        )
    return row


def _decoded(text: str) -> TraceRow:
    try:
        return _row.decode(text)
    except msgspec.ValidationError as error:
        try:
            earlier = _earlier.decode(text)
        except msgspec.MsgspecError:
            unknown = next((name for name in _fields.decode(text) if name not in _NAMES), None)
            if unknown is not None:
                raise ValueError(f"unknown field {unknown!r}{choices(unknown, _NAMES)}") from None
            raise error from None
        return TraceRow(
            arrival=earlier.arrival,
            input_tokens=earlier.prompt_tokens or 0,
            output_tokens=earlier.output_tokens or 0,
        )


def write_trace(path: Path, trace: Trace) -> int:
    """Writes `trace` as one of ours, with its header; `.xz` and `.gz` are packed. Returns how many rows it had.

    The file appears when all of it is written. Raises ConfigError when it cannot be, or when `trace` cannot be read.
    """
    rows = iter(trace)
    first = next(rows, None)  # a log knows when it began once it has been read
    return write_rows(path, trace.header, chain([] if first is None else [first], rows))


def write_rows(path: Path, header: Header, rows: Iterable[TraceRow]) -> int:
    """As `write_trace`, of rows that are in order."""
    encoder = msgspec.json.Encoder()
    buffer = bytearray()
    count = 0
    with writing(path) as file:
        file.write(encoder.encode(header) + b"\n")
        for row in rows:
            encoder.encode_into(row, buffer)
            buffer += b"\n"
            file.write(buffer)
            count += 1
    return count
