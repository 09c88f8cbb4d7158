"""Records of any log, CSV or JSON, and the values in them by name: numbers, times, words."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from foreserve.errors import ConfigError
from foreserve.traces.files import MAX_LINE_BYTES, any_lines, lines, reading

MAX_ARRAY_BYTES: Final = 512 * 2**20
"""A JSON array is read as a whole."""

Record = dict[str, Any]
TimeFormat = Literal["auto", "iso", "s", "ms", "us", "ns"]
TIME_FORMATS: Final = ("auto", "iso", "s", "ms", "us", "ns")

_PER_SECOND: Final = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_NONE: Final = ("", "null", "none", "nan", "\\n")
_SHORT_ZONE: Final = re.compile(r"([+-]\d{2})$")

_object = msgspec.json.Decoder(dict[str, Any])


def records(path: Path) -> Iterator[tuple[int, Record | Exception]]:
    """Each record with its line (of a JSON array: its place, from 1); the error in place of one that cannot be read.

    A file that begins with `[` is a JSON array, with `{` JSONL, any other CSV with a header. Raises ConfigError where
    the file as a whole cannot be read.
    """
    head = next(lines(path), None)
    if head is None:
        raise ConfigError(f"{path}: no rows in it: the file is empty")
    if head[1].startswith("["):
        return _array(path)
    return _jsonl(path) if head[1].startswith("{") else _csv(path)


def _jsonl(path: Path) -> Iterator[tuple[int, Record | Exception]]:
    for number, text in any_lines(path):
        if isinstance(text, ValueError):
            yield number, text
            continue
        try:
            yield number, _object.decode(text)
        except msgspec.MsgspecError as error:
            yield number, error


def _array(path: Path) -> Iterator[tuple[int, Record | Exception]]:
    with reading(path) as file:
        data = file.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise ConfigError(f"{path}: a JSON array of over {MAX_ARRAY_BYTES} bytes; valid: JSONL, an object in each line")
    try:
        every = msgspec.json.decode(data, type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: not a JSON array of objects: {error}") from None
    yield from enumerate(every, 1)


def _csv(path: Path) -> Iterator[tuple[int, Record | Exception]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with reading(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        names: list[str] = []
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if not names:
                    raise ConfigError(f"{path}: line {rows.line_num}: {error}") from None
                yield rows.line_num, error
                continue
            if not names:
                names = cells
            elif len(cells) != len(names) and cells:
                yield rows.line_num, ValueError(f"{len(cells)} columns; the first line has {len(names)}")
            elif not _is_text(cells):
                yield rows.line_num, ValueError("not UTF-8")
            elif cells:
                yield rows.line_num, dict(zip(names, cells, strict=True))


def _is_text(cells: list[str]) -> bool:
    """Whether all of it was UTF-8: what was not is there as surrogates."""
    line = "".join(cells)
    if line.isascii():
        return True
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def find(record: Record, name: str) -> Any:
    """The value of a column, or at a dotted path into nested objects, lists and JSON in text; `None`: not there."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, str) and value[:1] in ("{", "["):
            try:
                value = msgspec.json.decode(value)
            except msgspec.MsgspecError:
                return None
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def empty(value: Any) -> bool:
    """Whether a value says that there is none."""
    return value is None or (isinstance(value, str) and value.strip().lower() in _NONE)


def number(value: Any) -> float:
    """Raises ValueError for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{_short(value)} is no number")
    try:
        found = float(value)
    except ValueError:
        raise ValueError(f"{_short(value)} is no number") from None
    if not math.isfinite(found):
        raise ValueError(f"{_short(value)} is not finite")
    return found


def whole(value: Any) -> int:
    """A number of tokens. Raises ValueError."""
    found = number(value)
    if not found.is_integer():
        raise ValueError(f"{_short(value)} is no whole number")
    return int(found)


def time(value: Any, form: TimeFormat, zone: ZoneInfo) -> float:
    """A time in seconds since 1970, or since whatever a number counts from. Raises ValueError.

    `auto` takes text that is no number as ISO 8601, and large numbers as parts of seconds: what would be after the year
    5138 in seconds is in milliseconds, and so on. Dates that name no zone are in `zone`.
    """
    if form in _PER_SECOND:
        return number(value) / _PER_SECOND[form]
    if form == "auto":
        try:
            found = number(value)
        except ValueError:
            pass
        else:
            return found / next(
                (scale for above, scale in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)) if found > above), 1.0
            )
    if not isinstance(value, str):
        raise ValueError(f"{_short(value)} is no time; expected ISO 8601 text or a number of seconds")
    text = _SHORT_ZONE.sub(r"\1:00", value.strip()) if ":" in value else value.strip()
    text = re.sub(r"\s+UTC$", "+00:00", text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{_short(value)} is no time; expected ISO 8601, as 2025-11-16T18:15:46.5Z") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=zone)).astimezone(UTC).timestamp()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
