"""True lengths for the requests of a recording that were not done: drawn from those of its like that were."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import itemgetter
from typing import Final

import msgspec
from numpy.random import Generator  # noqa: TID251 - the type of the generator that is passed on

from foreserve.core import OutcomeKind
from foreserve.traces.drawing import generator
from foreserve.traces.row import TraceRow

MOST_KEYS: Final = 1024
"""Kinds of requests (a service's, an app's or tenant's of one) that are held apart; more are known by wider ones."""

MOST_LENGTHS: Final = 512
"""Of each kind: a sample of those that were done."""

FEW: Final = 8
"""With fewer than these a kind tells too little, and a wider one is asked."""

Key = tuple[str, ...]

_answer = itemgetter(1)


class _Sample:
    """A uniform sample of (prompt, answer), by the answer's length."""

    __slots__ = ("lengths", "seen")

    def __init__(self) -> None:
        self.seen = 0
        self.lengths: list[tuple[int, int]] = []

    def add(self, lengths: tuple[int, int], rng: Generator) -> None:
        self.seen += 1
        if len(self.lengths) == MOST_LENGTHS:
            if (place := int(rng.random() * self.seen)) >= MOST_LENGTHS:
                return
            del self.lengths[place]
        insort(self.lengths, lengths, key=_answer)


class Lengths:
    """Hears all rows of a trace once, then completes those whose true length nobody knows.

    Such a row ended otherwise than done, so its `output_tokens` are those that were made until then: none, where it
    was shed. It gets the answer's length of a request of the same service and app (without one: tenant) that was done
    and is at least as long as what was made, and that request's prompt where its own was not read.
    """

    def __init__(self) -> None:
        self.unknown = 0
        """Rows without a true length."""
        self._rng = generator(0)  # which are held of many; the lengths themselves are drawn with the run's seed
        self._samples: dict[Key, _Sample] = {}

    def hear(self, row: TraceRow) -> None:
        """One row of the trace."""
        if _not_done(row):
            self.unknown += 1
        elif row.outcome == OutcomeKind.DONE.value and row.output_tokens > 0:
            for key in _keys(row):
                sample = self._samples.get(key)
                if sample is None:
                    if len(self._samples) >= MOST_KEYS and key:
                        continue
                    sample = self._samples[key] = _Sample()
                sample.add((row.input_tokens, row.output_tokens), self._rng)

    def completed(self, rows: Iterator[TraceRow], seed: int) -> Iterator[TraceRow]:
        """The rows, in the same order; the same `seed` draws the same lengths."""
        if not self.unknown or not self._samples:
            return rows
        return self._completed(rows, generator(seed))

    def _completed(self, rows: Iterator[TraceRow], rng: Generator) -> Iterator[TraceRow]:
        for row in rows:
            if not _not_done(row):
                yield row
                continue
            prompt, answer = self._drawn(row, rng.random())
            if row.most_tokens is not None:
                answer = max(min(answer, row.most_tokens), row.output_tokens)
            yield msgspec.structs.replace(row, input_tokens=row.input_tokens or prompt, output_tokens=answer)

    def _drawn(self, row: TraceRow, share: float) -> tuple[int, int]:
        """Of the narrowest kind that knows enough of such length; what the row has where none does."""
        for least in (FEW, 1):
            for key in _keys(row):
                lengths = self._samples[key].lengths if key in self._samples else []
                first = bisect_left(lengths, row.output_tokens, key=_answer)
                if (there := len(lengths) - first) >= least:
                    return lengths[first + int(share * there)]
        return 0, row.output_tokens

    def remark(self) -> str | None:
        """What was drawn, in words; `None`: nothing."""
        if not self.unknown:
            return None
        if self._samples:
            return f"{self.unknown:,} rows had no true length (they were not done): drawn from those that were done"
        return f"{self.unknown:,} rows had no true length (they were not done), and none was done to draw it from"


def _not_done(row: TraceRow) -> bool:
    return row.outcome is not None and row.outcome != OutcomeKind.DONE.value and row.seconds is None


def _keys(row: TraceRow) -> tuple[Key, ...]:
    """From the narrowest kind to the widest, which is everything."""
    service = row.service or ""
    return (service, "app" if row.app else "tenant", row.app or row.tenant), (service,), ()
