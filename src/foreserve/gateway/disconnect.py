"""A client that goes away takes its work with it, whether its answer streams or is still waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from starlette.types import Receive


class Closable(Protocol):
    """An answer in the making: its client may leave."""

    def close(self) -> None:
        """End it with all that works for it; nothing happens to one that has ended."""
        ...


@asynccontextmanager
async def closing(streams: Sequence[Closable], receive: Receive) -> AsyncIterator[None]:
    """Within it, the streams are closed as soon as the client is gone; at its end those that have not ended are.

    The request's body must have been read. A closed stream ends, so who reads it needs no other signal.
    """
    listener = asyncio.create_task(_listen(streams, receive))
    try:
        yield
    finally:
        listener.cancel()
        for stream in streams:
            stream.close()


async def _listen(streams: Sequence[Closable], receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    for stream in streams:
        stream.close()
