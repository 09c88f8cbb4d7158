"""Server-sent events as bytes: cut at their ends, never altered, read only where they tell token counts
or that an answer was cut."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

_END = re.compile(rb"\n\r?\n|\r\r")
"""A blank line ends an event; lines end in LF, CRLF or CR. A stray LF behind two CRs opens the next event unharmed."""

_CUT = re.compile(rb'"(?:finish_reason|stop_reason|reason)"\s*:\s*"(?:length|max_tokens|max_output_tokens)"')
"""What may tell that an answer was cut: never within a text, whose quotes are escaped."""

_DATA = re.compile(rb"^data: ?(.*?)\r?$", re.MULTILINE)


class EventTooLong(ValueError):
    """An event grew beyond the bound without ending."""


class EventSplitter:
    """Bytes in, as they come off the wire; whole events out. What it gave out, joined, is what it took in."""

    def __init__(self, bound: int = 32 * 2**20) -> None:
        """`bound` is the most bytes one event may have."""
        self._bound = bound
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, each with its blank line. Raises EventTooLong."""
        # The last bytes of what was searched before may be the first half of a blank line.
        start, search = 0, max(0, len(self._rest) - 3)
        self._rest += data
        events = []
        while found := _END.search(self._rest, search):
            events.append(bytes(self._rest[start : found.end()]))
            start = search = found.end()
        del self._rest[:start]
        if len(self._rest) > self._bound:
            raise EventTooLong(f"an event of more than {self._bound} bytes")
        return events

    def rest(self) -> bytes:
        """What is left when the stream has ended: usually nothing, else an event without its blank line."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one event or body tells of tokens; `apart` when it is an event of usage alone (no choices, no text).

    `cut`: an answer ended here because it had reached its limit, of several any one.
    """

    usage: dict[str, float]
    apart: bool = False
    cut: bool = False


def told(event: bytes) -> Told | None:
    """Token counts and cuts told by a server-sent event, or `None`. Cheap where it tells none."""
    if b'"usage"' not in event and b'"timings"' not in event and not _CUT.search(event):
        return None
    data = data_of(event)
    return told_by_json(data) if data else None


def data_of(event: bytes) -> bytes:
    """The data of a server-sent event, empty when it has none."""
    return b"\n".join(_DATA.findall(event))


def told_by_json(body: bytes) -> Told | None:
    """As `told`, for a JSON answer: chat and text completions, embeddings, responses, messages, llama.cpp's timings."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(answer, dict):
        return None
    usage: dict[str, float] = {}
    # The responses API wraps the answer in its last event, the messages API in its first.
    for part in (answer, answer.get("response"), answer.get("message")):
        if isinstance(part, dict):
            usage |= _from_usage(part.get("usage"))
    if not usage:
        usage = _from_timings(answer.get("timings"))
    cut = _cut(answer)
    if not usage and not cut:
        return None
    return Told(usage=usage, apart=answer.get("choices") == [] and isinstance(answer.get("usage"), dict), cut=cut)


def _cut(answer: dict[str, Any]) -> bool:
    """Whether it ended at its limit: chat and text completions, the responses API, the messages API."""
    choices, response = answer.get("choices"), answer.get("response")
    if isinstance(choices, list):
        return any(isinstance(choice, dict) and choice.get("finish_reason") == "length" for choice in choices)
    for part in (answer, response):
        details = part.get("incomplete_details") if isinstance(part, dict) else None
        if isinstance(details, dict) and details.get("reason") == "max_output_tokens":
            return True
    return any(
        isinstance(part, dict) and part.get("stop_reason") == "max_tokens" for part in (answer, answer.get("delta"))
    )


def _from_usage(usage: Any) -> dict[str, float]:
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
    return _numbers(
        prompt_tokens=usage.get("prompt_tokens", usage.get("input_tokens")),
        output_tokens=usage.get("completion_tokens", usage.get("output_tokens")),
        cached_tokens=cached,
    )


def _from_timings(timings: Any) -> dict[str, float]:
    """llama.cpp closes every answer with these, asked or not; its `prompt_n` leaves out what came from the cache."""
    if not isinstance(timings, Mapping):
        return {}
    told = _numbers(
        prompt_tokens=timings.get("prompt_n"),
        output_tokens=timings.get("predicted_n"),
        cached_tokens=timings.get("cache_n"),
    )
    if "prompt_tokens" in told:
        told["prompt_tokens"] += told.get("cached_tokens", 0.0)
    return told


def _numbers(**amounts: Any) -> dict[str, float]:
    numbers = {name: amount for name, amount in amounts.items() if not isinstance(amount, bool)}
    return {name: float(amount) for name, amount in numbers.items() if isinstance(amount, int | float)}
