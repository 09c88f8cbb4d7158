"""A gateway's own log as a trace: which column means what, one row of ours for each of its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from foreserve.core import OutcomeKind
from foreserve.errors import ConfigError
from foreserve.registry import choices
from foreserve.traces import columns
from foreserve.traces.columns import TIME_FORMATS, YEAR_2000, Record, TimeFormat
from foreserve.traces.reading import BAD, check, name_of, words
from foreserve.traces.row import Header, TraceRow
from foreserve.traces.sorting import in_any_order

T = TypeVar("T")

TELL_EVERY: Final = 2048

_ENDS: Final = {
    OutcomeKind.DONE: ("success", "succeeded", "successful", "ok", "done", "completed", "complete", "stop", "length"),
    OutcomeKind.SHED: ("shed", "429", "rate_limited", "throttled", "rejected"),
    OutcomeKind.EXPIRED: ("expired", "timeout", "timed_out", "408", "504"),
    OutcomeKind.CANCELLED: ("cancelled", "canceled", "aborted", "abort", "disconnected", "499"),
}


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is where: names of columns, or dotted paths into JSON; several by commas are the first that is not empty.

    The arrival is `arrival`, or `end` less `duration`. `end`, `duration` (seconds, or milliseconds with
    `durations_in_ms`) and `ttft` (such a duration, or the time of the first token) tell the latency. `only` and
    `without` are `COLUMN=VALUE`: records that are all of the first and none of the second are taken.
    """

    arrival: str = ""
    end: str = ""
    duration: str = ""
    ttft: str = ""
    input_tokens: str = ""
    output_tokens: str = ""
    most_tokens: str = ""
    tenant: str = ""
    service: str = ""
    app: str = ""
    status: str = ""
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    times: TimeFormat = "auto"
    durations_in_ms: bool = False
    zone: str = "UTC"


RECIPES: Final = {
    "litellm": Columns(
        arrival="startTime",
        end="endTime",
        ttft="completionStartTime",
        input_tokens="prompt_tokens",
        output_tokens="completion_tokens",
        tenant="team_id,user,api_key",
        service="model_group,model",
        status="status",
        without=("cache_hit=True",),
    )
}
"""Columns by the name of the gateway that writes them so."""


class Log:
    """A gateway's log. Implements `Trace`: rows by arrival, the first at 0; `header.epoch` is known from that on.

    Each reading goes through all of the file first, since logs are written as requests end; `told` hears how many
    records it has come through. With `hide_tenants` they are called t1, t2, … as they come. Raises ConfigError for
    records that are malformed (or counts them, with `skip_bad`), and for columns that no record has, of those that
    `must` be there (all, unless it is given).
    """

    def __init__(
        self,
        path: Path,
        where: Columns,
        *,
        skip_bad: bool = False,
        hide_tenants: bool = False,
        told: Callable[[int], None] = lambda count: None,
        must: Columns | None = None,
    ) -> None:
        if not where.arrival and not (where.end and where.duration):
            raise ConfigError(
                "when did requests arrive? valid: a column of arrivals, or one of ends and one of durations"
            )
        if where.times not in TIME_FORMATS:
            raise ConfigError(f"times are {where.times!r}{choices(where.times, TIME_FORMATS)}")
        try:
            self._zone = ZoneInfo(where.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ConfigError(f"zone {where.zone!r} is not known; valid: names as UTC, Europe/Berlin") from None
        self.header = Header(name=name_of(path))
        self.skipped = 0
        self.left_out = 0
        """Records that `only` and `without` left out of the last reading."""
        self._path = path
        self._where = where
        self._skip_bad = skip_bad
        self._hide_tenants = hide_tenants
        self._only = [_condition(text) for text in where.only]
        self._without = [_condition(text) for text in where.without]
        self._told = told
        self._must = where if must is None else must

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[TraceRow]:
        self.skipped = self.left_out = 0
        start: float | None = None
        tenants: dict[str, str] = {}
        for row in in_any_order(self._rows()):
            if start is None:
                start = row.arrival
                self.header = msgspec.structs.replace(self.header, epoch=start if start >= YEAR_2000 else 0.0)
            tenant = row.tenant
            if self._hide_tenants:
                tenant = tenants.setdefault(tenant, f"t{len(tenants) + 1}")
            yield check(msgspec.structs.replace(row, arrival=round(row.arrival - start, 6), tenant=tenant))

    def _rows(self) -> Iterator[TraceRow]:
        """The records as rows, each at its own time."""
        needed = _needed(self._must)
        missing = {name for names in needed for name in names}
        there: list[str] = []
        for count, (number, record) in enumerate(columns.records(self._path), 1):
            if count % TELL_EVERY == 0:
                self._told(count)
            try:
                if isinstance(record, Exception):
                    raise record
                there = there or list(record)
                if missing:
                    missing = {name for name in missing if columns.find(record, name) is None}
                if not self._wanted(record):
                    self.left_out += 1
                    continue
                row = self._row(record)
            except BAD as error:
                if not self._skip_bad:
                    raise ConfigError(f"{self._path}: line {number}: {words(error)}") from None
                self.skipped += 1
            else:
                yield row
        for names in needed:
            if missing.issuperset(names):
                raise ConfigError(f"{self._path}: no row has a value under {names[0]!r}{choices(names[0], there)}")

    def _wanted(self, record: Record) -> bool:
        def holds(name: str, value: str) -> bool:
            return str(columns.find(record, name)).strip().lower() == value.lower()

        return all(holds(*one) for one in self._only) and not any(holds(*one) for one in self._without)

    def _row(self, record: Record) -> TraceRow:
        where = self._where
        end = self._time(record, "end")
        took = self._duration(record, "duration")
        arrival = self._time(record, "arrival")
        if arrival is None:
            if end is None or took is None:
                names = where.arrival or f"{where.end}, {where.duration}"
                raise ValueError(f"no arrival: nothing under {names!r}{choices(names, record)}")
            arrival = end - took
        if took is None and end is not None:
            took = end - arrival
        if took is not None and took < 0.0:
            raise ValueError(f"it ends {-took:g} s before it arrives")
        row = TraceRow(
            arrival=arrival,
            input_tokens=self._whole(record, "input_tokens") or 0,
            output_tokens=self._whole(record, "output_tokens") or 0,
            most_tokens=self._whole(record, "most_tokens"),
            tenant=self._words(record, "tenant") or "default",
            service=self._words(record, "service"),
            app=self._words(record, "app") or "",
            outcome=_outcome(self._words(record, "status")),
            first_s=_micro(self._first(record, arrival)),
            total_s=_micro(took),
        )
        check(msgspec.structs.replace(row, arrival=0.0))
        return row

    def _read(self, record: Record, field: str, how: Callable[[Any], T]) -> T | None:
        """What the first column that has a value for `field` says. Raises ValueError that names the column."""
        for name in _names(getattr(self._where, field)):
            if not columns.empty(value := columns.find(record, name)):
                try:
                    return how(value)
                except ValueError as error:
                    raise ValueError(f"column {name!r}: {error}") from None
        return None

    def _time(self, record: Record, field: str) -> float | None:
        return self._read(record, field, lambda value: columns.time(value, self._where.times, self._zone))

    def _duration(self, record: Record, field: str) -> float | None:
        return self._read(record, field, self._seconds)

    def _seconds(self, value: Any) -> float:
        return columns.number(value) / (1000.0 if self._where.durations_in_ms else 1.0)

    def _first(self, record: Record, arrival: float) -> float | None:
        """A duration, or a time: one that is written as one, or that lies decades after 0."""

        def first(value: Any) -> float:
            try:
                if columns.number(value) < YEAR_2000:
                    return self._seconds(value)
            except ValueError:
                pass
            return max(0.0, columns.time(value, self._where.times, self._zone) - arrival)

        return self._read(record, "ttft", first)

    def _whole(self, record: Record, field: str) -> int | None:
        return self._read(record, field, columns.whole)

    def _words(self, record: Record, field: str) -> str | None:
        return self._read(record, field, str)


def _micro(seconds: float | None) -> float | None:
    """Without what a difference of two times since 1970 has in digits that nobody measured."""
    return None if seconds is None else round(seconds, 6)


def _needed(must: Columns) -> list[list[str]]:
    """Groups of columns of which one at least has to be there."""
    texts = [getattr(must, field) for field in must.__struct_fields__ if field not in ("times", "zone")]
    groups = [_names(text) for text in texts if isinstance(text, str)]
    return [*(names for names in groups if names), *([_condition(text)[0]] for text in (*must.only, *must.without))]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{text!r} is no condition; valid: COLUMN=VALUE, as cache_hit=True")
    return name.strip(), value.strip()


def _outcome(status: str | None) -> str | None:
    if status is None:
        return None
    word = status.strip().lower().removesuffix(".0")
    if word.isdecimal() and 200 <= int(word) < 300:
        return OutcomeKind.DONE.value
    return next((kind.value for kind, known in _ENDS.items() if word in known), OutcomeKind.FAILED.value)
