"""An engine's word that it is of no use any more."""

from __future__ import annotations

import asyncio


class Failure:
    """Said once, for good; what `Engine.failed` waits for."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why, in words; `None` while all is well."""
        self._said = asyncio.Event()

    def say(self, reason: str) -> None:
        """The engine has failed. What it ends before it says so is still told. Only the first call counts."""
        if self.reason is None:
            self.reason = reason
            self._said.set()

    async def said(self) -> str:
        """Returns why, once it has been said."""
        await self._said.wait()
        return self.reason or ""
