"""When and how long a client waits before it tries again: the rules of OpenAI's official Python client. Pure.

Its numbers: 0.5 s doubled each time up to 8 s, less up to a quarter by chance; `retry-after-ms` and `retry-after` are
honoured up to two minutes; a longer one is not retried at all; `x-should-retry` overrules the status.
"""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping

FIRST_S = 0.5
LONGEST_S = 8.0
LONGEST_RETRY_AFTER_S = 120.0


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds that the server asks for, `None` when it does not or says it unreadably. `wall` is seconds since 1970."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return float(headers[name]) / divisor
        except (KeyError, ValueError):
            continue
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if date is None:
        return None
    try:
        return email.utils.mktime_tz(date) - wall
    except (ValueError, OverflowError):
        return None


def worth_it(status: int | None, headers: Mapping[str, str], wall: float) -> bool:
    """Whether another attempt is due. `status` is `None` when there was no answer (connection lost, timeout)."""
    if status is None:
        return True
    asked = retry_after(headers, wall)
    if asked is not None and math.isfinite(asked) and asked > LONGEST_RETRY_AFTER_S:
        return False
    should = headers.get("x-should-retry")
    if should in ("true", "false"):
        return should == "true"
    return status in (408, 409, 429) or status >= 500


def wait(attempt: int, headers: Mapping[str, str], wall: float, chance: float) -> float:
    """Seconds before the next attempt after the one numbered `attempt` (from 0). `chance` is from 0 up to 1."""
    asked = retry_after(headers, wall)
    if asked is not None and 0 < asked <= LONGEST_RETRY_AFTER_S:
        return asked
    return min(FIRST_S * 2.0 ** min(attempt, 10), LONGEST_S) * (1 - 0.25 * chance)
