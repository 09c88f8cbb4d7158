"""What went wrong on a connection, in words."""

from __future__ import annotations

import os


def fault(error: BaseException) -> str:
    """What the system said of a connection that failed: `connection refused`.

    An HTTP client's own words repeat the address in its notation. Where the system said nothing they are taken; an
    error without any goes by its type's name.
    """
    cause = getattr(error, "os_error", error)  # aiohttp keeps it there
    if isinstance(cause, OSError) and cause.errno is not None:
        # A name that cannot be resolved has a number of its own, below 0 on Linux, with words for it.
        words = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
        if words:
            return words[:1].lower() + words[1:]
    if type(error).__name__ == "ClientPayloadError":
        return "the connection ended within it"
    return str(error) or type(error).__name__
