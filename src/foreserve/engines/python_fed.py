"""Arguments whose items come while the call runs: what the user's code reads, and what fills it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from foreserve.calling import Items


class Fed:
    """An asynchronous iterator, as `foreserve.Stream` is one in a pipeline's own stages."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._over = False

    @classmethod
    def of(cls, items: Iterable[Any]) -> Fed:
        """One that has all its items already."""
        made = cls()
        made.take(items, last=True)
        return made

    def take(self, items: Iterable[Any], *, last: bool) -> None:
        """More items; with `last` there are no more after them."""
        for item in items:
            self._items.put_nowait(item)
        if last:
            self._items.put_nowait(_END)

    def __aiter__(self) -> Fed:
        return self

    async def __anext__(self) -> Any:
        item = _END if self._over else await self._items.get()
        if item is _END:
            self._over = True
            raise StopAsyncIteration
        return item

    async def to_list(self) -> list[Any]:
        """All items that are left, once they are here."""
        return [item async for item in self]


_END = object()

MOST: Final = 4096
"""Of how many calls items are kept at once: a call that has ended may be given some that were on their way."""


class Feeding:
    """The fed arguments of all calls. Items may come before their call has begun, and after it has ended."""

    def __init__(self) -> None:
        self._fed: dict[str, dict[str, Fed]] = {}

    def begin(self, request_id: str, names: Iterable[str]) -> dict[str, Fed]:
        """What a call is given for its fed arguments."""
        return {name: self._of(request_id, name) for name in names}

    def take(self, request_id: str, data: Any) -> None:
        """`data` is an `Items`, as it crossed a process. Raises msgspec.ValidationError for anything else."""
        items = data if isinstance(data, Items) else msgspec.convert(data, Items)
        self._of(request_id, items.name).take(items.items, last=items.last)

    def end(self, request_id: str) -> None:
        """The call is over."""
        self._fed.pop(request_id, None)

    def _of(self, request_id: str, name: str) -> Fed:
        while request_id not in self._fed and len(self._fed) >= MOST:
            del self._fed[next(iter(self._fed))]
        return self._fed.setdefault(request_id, {}).setdefault(name, Fed())
