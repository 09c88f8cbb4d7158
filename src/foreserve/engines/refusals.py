"""A server's error answer as a finish: what it said is kept whole, so that the client can be told the same."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from foreserve.clock import wall
from foreserve.core import Finish

BACK_PRESSURE = (429, 503)
"""Statuses that say `not now` rather than `not this`: the same request may be served later or elsewhere."""

_LONGEST_RETRY_S = 3600.0


def refusal(url: str, status: int, headers: Mapping[str, str], body: bytes) -> Finish:
    """The finish of a request that the server at `url` answered with `status` (400 or above).

    `rejected` when the request was at fault or the server has no room, `error` when the server failed. `detail` holds
    the answer: `status`, `body`, `content_type`, `headers`, and `retry_after` (seconds) where the server gave one.
    """
    return Finish(
        reason="rejected" if status < 500 or status in BACK_PRESSURE else "error",
        error=f"the server {url} answered {status}",
        detail={
            "status": status,
            "body": body,
            "content_type": headers.get("Content-Type", "application/json"),
            "headers": dict(headers),
            "retry_after": retry_after(headers.get("Retry-After")) if status in BACK_PRESSURE else None,
        },
    )


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
