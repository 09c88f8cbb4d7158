"""Rows in any order put in order of arrival: sorted in blocks, which lie in temporary files until they are merged."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from operator import attrgetter
from typing import IO, Final

import msgspec

from foreserve.errors import ConfigError
from foreserve.traces.row import TraceRow

BLOCK: Final = 200_000
"""Rows in memory at once."""

MOST_BLOCKS: Final = 500

_arrival: Callable[[TraceRow], float] = attrgetter("arrival")
_row = msgspec.msgpack.Decoder(TraceRow)


def in_any_order(rows: Iterable[TraceRow], block: int = BLOCK) -> Iterator[TraceRow]:
    """The rows by arrival, equal ones as they came. Raises ConfigError for more than 500 blocks of them."""
    rows = iter(rows)
    with ExitStack() as files:
        blocks: list[Iterator[TraceRow]] = []
        while some := sorted(islice(rows, block), key=_arrival):
            if not blocks and len(some) < block:
                yield from some
                return
            if len(blocks) == MOST_BLOCKS:
                raise ConfigError(f"more than {MOST_BLOCKS * block} rows to put in order")
            file = files.enter_context(tempfile.TemporaryFile())
            _put(file, some)
            blocks.append(_get(file))
        yield from heapq.merge(*blocks, key=_arrival)


def _put(file: IO[bytes], rows: list[TraceRow]) -> None:
    encoder = msgspec.msgpack.Encoder()
    for row in rows:
        data = encoder.encode(row)
        file.write(len(data).to_bytes(4, "big") + data)
    file.flush()
    file.seek(0)


def _get(file: IO[bytes]) -> Iterator[TraceRow]:
    while size := file.read(4):
        yield _row.decode(file.read(int.from_bytes(size, "big")))
