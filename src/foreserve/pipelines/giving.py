"""How a stage's argument is given: as a value, as a whole, while it grows, or later."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from foreserve.pipelines.log import Log
from foreserve.pipelines.plan import Edge
from foreserve.pipelines.shapes import inner, is_later, is_stream
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text


class Mode(Enum):
    """How an argument is given."""

    VALUE = auto()
    """As it is, once it is there."""
    WHOLE = auto()
    """A stream as a list, a live text as `str`, once it is complete."""
    LIVE = auto()
    """A stream or text that may still grow; the call does not wait for it."""
    AS_TEXT = auto()
    """A `str` as a text that is whole."""
    LATER = auto()
    """As an awaitable; the call does not wait for it."""


@dataclass(frozen=True)
class Argument:
    """What a parameter is given: a constant, or what is on an edge."""

    name: str
    edge: Edge | None
    constant: Any = None
    mode: Mode = Mode.VALUE
    convert: Callable[[Any], Any] | None = None

    @property
    def at_once(self) -> bool:
        """Whether a call need not wait for it."""
        return self.edge is None or self.mode in (Mode.LIVE, Mode.LATER)


def argument(name: str, edge: Edge, want: Any) -> Argument:
    """How what is on `edge` is given to a parameter that wants `want`, which it fits."""
    have = edge.kind
    if is_later(want):
        return Argument(name, edge, mode=Mode.LATER)
    if is_stream(have):
        if is_stream(want):
            return Argument(name, edge, mode=Mode.LIVE, convert=conversion(inner(have), inner(want)))
        return Argument(name, edge, mode=Mode.WHOLE)
    if have is Text:
        return Argument(name, edge, mode=Mode.LIVE if want is Text else Mode.WHOLE)
    return Argument(name, edge, mode=Mode.AS_TEXT if want is Text else Mode.VALUE)


def conversion(have: Any, want: Any) -> Callable[[Any], Any] | None:
    """What makes of an item of a stream that which its reader wants; `None`: it is that already."""
    if is_stream(have):
        if not is_stream(want):
            return until_whole
        return functools.partial(Stream, convert=conversion(inner(have), inner(want)))
    if have is Text:
        return None if want is Text else until_whole
    return Text.of if want is Text else None


async def until_whole(held: Log) -> Any:
    """A stream as a list or a text as `str`, once it is complete."""
    if not held.complete:
        done = asyncio.get_running_loop().create_future()
        tell = functools.partial(_set, done)
        held.when_complete(tell)
        try:
            await done
        finally:
            held.forget(tell)
    return held.whole()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
