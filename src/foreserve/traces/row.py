"""One request of a trace: when it came, how long it was, on whose behalf. No text unless it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec


class TraceRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A line of our own JSONL traces, and what every other format is read as.

    `arrival` is in seconds since the trace's start. `input_tokens` is the whole prompt's length, `output_tokens` the
    answer's true one, which a simulated engine alone may know. `most_tokens` is the limit that the client set (`None`:
    it set none). `deadline_s` is in seconds from the arrival. `prefix` has a hash for each whole block of the prompt
    (of `Header.block_tokens` tokens), each of the prompt up to its end: equal hashes are equal prefixes. `app` stands
    for the instruction (system prompt) that several requests share. `seconds` is what a request of another kind than a
    language model took on a replica; it then has no tokens.

    A recording tells how it went, live: `outcome` as in `core.OutcomeKind`, `first_s` until its first token and
    `total_s` until its end, seconds since the arrival. `text` and `answer` are there only where they were asked for.
    """

    arrival: float
    input_tokens: int = 0
    output_tokens: int = 0
    most_tokens: int | None = None
    seconds: float | None = None
    service: str | None = None
    tenant: str = "default"
    deadline_s: float | None = None
    utility: float = 1.0
    prefix: tuple[int, ...] = ()
    app: str = ""
    outcome: str | None = None
    first_s: float | None = None
    total_s: float | None = None
    text: str | None = None
    answer: str | None = None


class Header(msgspec.Struct, frozen=True, kw_only=True, tag_field="foreserve_trace", tag=1):
    """The first line of our own traces. `epoch`: seconds since 1970 at arrival 0, for calendars; 0 is not known.

    `lost` is how many requests came while it was recorded and are not in it.
    """

    name: str = ""
    epoch: float = 0.0
    block_tokens: int = 512
    lost: int = 0


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag_field="foreserve_trace", tag="lost"):
    """A line of a recording: its reader was too slow for this many rows, which are not in it."""

    rows: int


class Trace(Protocol):
    """A trace that can be read from its start as often as one likes. Rows come in order of arrival."""

    @property
    def header(self) -> Header: ...
    @property
    def skipped(self) -> int:
        """Malformed rows that the last whole reading left out, where that was asked for."""
        ...

    def __iter__(self) -> Iterator[TraceRow]:
        """Raises ConfigError that names the file and the line."""
        ...

    def __len__(self) -> int:
        """Rows, as far as known without reading all of it; 0 is not known. For progress bars."""
        ...
