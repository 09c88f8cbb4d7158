"""Vidur's length files: CSV with lengths and no times. Arrivals are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from foreserve.errors import ConfigError
from foreserve.traces.drawing import generator
from foreserve.traces.files import lines
from foreserve.traces.reading import LineTrace, Numbered, name_of
from foreserve.traces.row import Header, TraceRow

COLUMNS: Final = ("num_prefill_tokens", "num_decode_tokens")
LOOKS: Final = f"CSV with {','.join(COLUMNS)} (lengths alone: needs a rate)"

_BLOCK: Final = 1024


def recognise(text: str) -> bool:
    """Whether this is the first line of such a file."""
    return set(COLUMNS) <= {cell.strip() for cell in text.split(",")}


class LengthsTrace(LineTrace):
    """Poisson arrivals, `rate` a second, the same for the same `seed`; lengths in the order of the file."""

    def __init__(self, path: Path, first_line: int, columns: list[str], rate: float, seed: int, skip_bad: bool) -> None:
        places = [columns.index(name) for name in COLUMNS]
        last = max(places)

        def parse(text: str) -> TraceRow:
            found = text.split(",")
            if len(found) <= last:
                raise ValueError(f"{len(found)} columns; expected at least {last + 1}")
            # Whole numbers, which some of these files write as 12.0.
            prefill, decode = (_number(name, found[place]) for name, place in zip(COLUMNS, places, strict=True))
            if not (prefill.is_integer() and decode.is_integer()):
                raise ValueError(f"lengths are {prefill:g} and {decode:g}; expected whole numbers of tokens")
            return TraceRow(arrival=0.0, input_tokens=int(prefill), output_tokens=int(decode))

        super().__init__(path, parse, header=Header(name=name_of(path)), first_line=first_line, skip_bad=skip_bad)
        self._rate = rate
        self._seed = seed

    def numbered(self) -> Iterator[Numbered]:
        """See `LineTrace`."""
        rng = generator(self._seed)
        gaps: Iterator[float] = iter(())
        at = 0.0
        for number, row in super().numbered():
            if (gap := next(gaps, None)) is None:
                gaps = iter(rng.exponential(1.0 / self._rate, _BLOCK).tolist())
                gap = next(gaps)
            at += gap
            yield (
                number,
                TraceRow(arrival=at, input_tokens=row.input_tokens, output_tokens=row.output_tokens),
            )


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"column {name!r}: {text.strip()!r} is no number") from None


def open_vidur(path: Path, *, rate: float | None, seed: int = 0, skip_bad: bool = False) -> LengthsTrace:
    """`rate`: requests a second. Raises ConfigError without one."""
    head = next(lines(path), None)
    if head is None or not recognise(head[1]):
        raise ConfigError(f"{path}: line 1: columns are {head[1] if head else ''!r}; expected {','.join(COLUMNS)}")
    if rate is None:
        raise ConfigError(
            f"{path}: lengths without arrivals: these are drawn, and how many a second has to be said "
            "(--per-second; `foreserve trace convert` makes a trace of it)"
        )
    if not 0.0 < rate < float("inf"):
        raise ConfigError(f"{path}: arrivals a second are {rate}; there must be more than 0")
    columns = [cell.strip() for cell in head[1].split(",")]
    return LengthsTrace(path, head[0] + 1, columns, rate, seed, skip_bad)
