"""The Mooncake traces: JSONL with a time in milliseconds, two lengths and hashes of the prompt's blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from foreserve.traces.reading import LineTrace, name_of
from foreserve.traces.row import Header, TraceRow

LOOKS: Final = '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]} in each line'
BLOCK_TOKENS: Final = 512


class _Row(msgspec.Struct, frozen=True, gc=False):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


_row = msgspec.json.Decoder(_Row)


def recognise(text: str) -> bool:
    """Whether this is the first line of such a trace."""
    try:
        _row.decode(text)
    except msgspec.MsgspecError:
        return False
    return True


def parse(text: str) -> TraceRow:
    """A line as a row. Their last hash may be of a block that is not full; ours are of whole blocks alone."""
    row = _row.decode(text)
    return TraceRow(
        arrival=row.timestamp / 1000.0,
        input_tokens=row.input_length,
        output_tokens=row.output_length,
        prefix=row.hash_ids[: max(0, row.input_length) // BLOCK_TOKENS],
    )


def open_mooncake(path: Path, *, skip_bad: bool = False, sort: bool = False) -> LineTrace:
    """Times stay as they are: milliseconds since the trace's start."""
    header = Header(name=name_of(path), block_tokens=BLOCK_TOKENS)
    return LineTrace(path, parse, header=header, skip_bad=skip_bad, sort=sort)
