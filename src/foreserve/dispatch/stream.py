"""One request's answer on its way to its caller: decoded, coalesced, bounded, ended once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from foreserve.core import Chunk, Outcome
from foreserve.ports import Decoder, Resumed


class Stream:
    """What `Service.submit` returns. Read it with `async for events in stream`, then look at `outcome`.

    Each turn gives every event that has come since the last one, so a slow reader gets fewer, larger turns. Leaving
    before the end without `close` keeps the request running until its reader is found stalled.
    """

    def __init__(
        self,
        request_id: str,
        decoder: Callable[[], Decoder],
        *,
        bound: int,
        stall_s: float,
        on_leave: Callable[[str, str], None],
    ) -> None:
        """`on_leave(id, reason)` is called when the reader closes, stalls for `stall_s` or is `bound` events behind."""
        self.id = request_id
        self.outcome: Outcome | None = None
        self.tap: Callable[[Sequence[Any]], None] | None = None
        """Hears every event as it comes, where the answer's text is being recorded."""
        self._new_decoder = decoder
        self._decoder = decoder()
        self._bound = bound
        self._stall_s = stall_s
        self._on_leave = on_leave
        self._events: list[Any] = []
        self._news: asyncio.Event | None = None  # made when its reader first waits
        self._stall: asyncio.TimerHandle | None = None
        self._listeners: list[Callable[[Outcome], None]] = []

    # --- the dispatcher's side

    def restart(self) -> None:
        """Nothing was delivered and the request runs again from the start."""
        self._decoder = self._new_decoder()
        self._events.clear()

    def resume(self) -> Resumed | None:
        """Part has been delivered: how the request goes on from there, `None` when it cannot."""
        resume = getattr(self._decoder, "resume", None)
        return None if resume is None else resume()

    def put(self, chunk: Chunk) -> bool:
        """Add what `chunk` means. True when the request wants no more."""
        decoded = self._decoder.feed(chunk)
        if decoded.events:
            self._events.extend(decoded.events)
            if self.tap is not None:
                self.tap(decoded.events)
            if self._news is not None:
                self._news.set()
            if len(self._events) > self._bound:
                self._on_leave(self.id, f"the client is more than {self._bound} events behind")
            elif self._stall is None:
                loop = asyncio.get_running_loop()
                self._stall = loop.call_later(self._stall_s, self._stalled)
        return decoded.enough

    def usage(self) -> dict[str, float]:
        """What has been used so far (see `Decoder.usage`)."""
        return self._decoder.usage()

    def end(self, outcome: Outcome) -> None:
        """Called once, by the dispatcher."""
        self.outcome = outcome
        if self._news is not None:
            self._news.set()
        for tell in self._listeners:
            tell(outcome)

    def _stalled(self) -> None:
        self._stall = None
        self._on_leave(self.id, f"the client read nothing for {self._stall_s:g} s")

    # --- the caller's side

    async def next(self) -> Sequence[Any] | None:
        """All undelivered events, at least one; `None` once the request has ended, with `outcome` set."""
        while not self._events:
            if self.outcome is not None:
                return None
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()
        events, self._events = self._events, []
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        return events

    def close(self, reason: str = "the client went away") -> None:
        """Leave: cancels the request unless it has ended."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self.outcome is None:
            self._on_leave(self.id, reason)

    async def settled(self) -> Outcome:
        """Read what is left, unseen, and return how it ended."""
        while await self.next() is not None:
            pass
        assert self.outcome is not None
        return self.outcome

    def when_ended(self, tell: Callable[[Outcome], None]) -> None:
        """Call `tell` with the outcome, at once if it has ended already."""
        if self.outcome is not None:
            tell(self.outcome)
        else:
            self._listeners.append(tell)

    def __aiter__(self) -> AsyncIterator[Sequence[Any]]:
        return self._turns()

    async def _turns(self) -> AsyncIterator[Sequence[Any]]:
        while (events := await self.next()) is not None:
            yield events
