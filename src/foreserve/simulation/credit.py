"""Chunks that may not be sent yet: those of requests that are read by credit (see `Work.credits`)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from foreserve.core import Chunk
from foreserve.engines.generation import Count, Tokens


class _Account(msgspec.Struct):
    credits: int
    sent: int = 0
    held: Chunk | None = None


class CreditGate:
    """Holds back what there is no credit for, as one chunk for each request, and numbers what goes on."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    @property
    def any(self) -> bool:
        """Whether any request is read by credit."""
        return bool(self._accounts)

    def add(self, request_id: str, credits: int) -> None:
        """It is read by credit, and has so much to begin with."""
        self._accounts[request_id] = _Account(credits=credits)

    def give(self, request_id: str, n: int) -> Sequence[Chunk]:
        """More credit. Returns what it was that waited for it, to be passed on."""
        account = self._accounts.get(request_id)
        if account is None:
            return ()
        account.credits += n
        held, account.held = account.held, None
        return () if held is None else (held,)

    def cancel(self, request_id: str) -> Sequence[Chunk]:
        """It is to end though its end was held back: returns that, to be passed on."""
        account = self._accounts.get(request_id)
        if account is None or account.held is None or account.held.finish is None:
            return ()
        finish = msgspec.structs.replace(account.held.finish, reason="cancelled")
        held, account.held = account.held, None
        return (msgspec.structs.replace(held, finish=finish),)

    def pass_on(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Those of them that may go now. An end that was not asked for needs credit; one that was does not."""
        return [passed for chunk in chunks if (passed := self._one(chunk)) is not None]

    def _one(self, chunk: Chunk) -> Chunk | None:
        account = self._accounts.get(chunk.id)
        if account is None:
            return chunk
        data = chunk.data if account.held is None else _joined(account.held.data, chunk.data)
        cancelled = chunk.finish is not None and chunk.finish.reason != "stop" and chunk.finish.reason != "length"
        chunk = msgspec.structs.replace(chunk, index=account.sent, data=data)
        if account.credits < 1 and not cancelled:
            account.held = chunk
            return None
        account.held = None
        account.credits -= 1
        account.sent += 1
        if chunk.finish is not None:
            del self._accounts[chunk.id]
        return chunk


def _joined(first: Count | Tokens | None, then: Count | Tokens | None) -> Count | Tokens | None:
    if isinstance(first, Count) and isinstance(then, Count):
        return Count(first.tokens + then.tokens)
    if isinstance(first, Tokens) and isinstance(then, Tokens):
        return Tokens(ids=[*first.ids, *then.ids])
    return then if first is None else first
