"""A server's error answer as a finish: what it said is kept whole, so that the client can be told the same."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

from foreserve.clock import wall
from foreserve.core import Finish

BACK_PRESSURE = (429, 503)
"""Statuses that say `not now` rather than `not this`: the same request may be served later or elsewhere."""

_MOST_WORDS = 200
_LONGEST_RETRY_S = 3600.0


def refusal(url: str, status: int, headers: Mapping[str, str], body: bytes) -> Finish:
    """The finish of a request that the server at `url` answered with `status` (400 or above).

    `rejected` when the request was at fault or the server has no room, `error` when the server failed. `detail` holds
    the answer: `status`, `body`, `content_type`, `headers`, and `retry_after` (seconds) where the server gave one.
    """
    return Finish(
        reason="rejected" if status < 500 or status in BACK_PRESSURE else "error",
        error=f"the upstream server {url} answered {status}{_said(body)}",
        detail={
            "status": status,
            "body": body,
            "content_type": headers.get("Content-Type", "application/json"),
            "headers": dict(headers),
            "retry_after": retry_after(headers.get("Retry-After")) if status in BACK_PRESSURE else None,
        },
    )


def _said(body: bytes) -> str:
    """The words of an OpenAI-like error, as a quotation: they are the server's, not ours."""
    try:
        error = msgspec.json.decode(body)["error"]
        words = error if isinstance(error, str) else error["message"]
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        return ""
    return f', and says "{words[:_MOST_WORDS]}"' if isinstance(words, str) and words else ""


def retry_after(value: str | None) -> float | None:
    """`Retry-After` (seconds or a date) in seconds from now, at most an hour; `None` where it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - wall()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_S) if seconds == seconds else None
