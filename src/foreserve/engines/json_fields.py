"""Edit top-level fields of a JSON object and leave every other value byte for byte as it came."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def fields(body: bytes) -> dict[str, msgspec.Raw] | None:
    """The top-level fields, their values still bytes; `None` when `body` is no JSON object."""
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # Half of a surrogate pair, as of an emoji cut in two, is read by most servers and not by msgspec.
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return (
        {name: msgspec.Raw(json.dumps(one).encode()) for name, one in read.items()} if isinstance(read, dict) else None
    )


def value(raw: msgspec.Raw | None) -> Any:
    """A field's value, `None` when it is missing or not readable."""
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def edited(body: bytes, put: Mapping[str, Any], drop: Collection[str] = ()) -> bytes:
    """`body` with the fields of `put` set and those of `drop` gone; `body` itself when that changes nothing.

    The order of fields stays; new ones come last. A body that is no JSON object is returned as it is.
    """
    before = fields(body)
    if before is None:
        return body
    after: dict[str, Any] = {name: raw for name, raw in before.items() if name not in drop} | dict(put)
    if not put and len(after) == len(before):
        return body
    return msgspec.json.encode(after)


def asking_for_usage(body: bytes) -> bytes:
    """`body` with `stream_options.include_usage` set, its other stream options kept."""
    options = value((fields(body) or {}).get("stream_options"))
    return edited(body, {"stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True}})
