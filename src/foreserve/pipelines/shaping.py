"""Steps that call no stage: split, flatten, gather, join, spread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from foreserve.pipelines.channel import Channel
from foreserve.pipelines.frame import Frame
from foreserve.pipelines.log import Log, Reader, whole
from foreserve.pipelines.plan import Edge
from foreserve.pipelines.splitting import Splitter
from foreserve.pipelines.text import Cutter, Text


class SplitStep:
    """A text into its pieces, while it is written."""

    def __init__(self, source: Edge, splitter: Splitter, out: Edge) -> None:
        self.name = splitter.name
        self.source = source
        self.splitter = splitter
        self.out: Edge = out

    def open(self, frame: Frame) -> None:
        """See `Step`."""
        frame.when(self.source, functools.partial(self._cut, frame))

    def _cut(self, frame: Frame, text: Text | str) -> None:
        out: Channel = frame.cells[self.out.index]
        held = Text.of(text) if isinstance(text, str) else text
        cutter = Cutter(held, self.splitter, out)
        frame.parts[cutter] = None
        cutter.start()
        _until(frame, out)


class FlattenStep:
    """A stream of streams into one. Known by the pair of both indices, or, where ordered, numbered anew."""

    def __init__(self, source: Edge, out: Edge, *, ordered: bool) -> None:
        self.name = "flatten"
        self.source = source
        self.out: Edge = out
        self.ordered = ordered

    def open(self, frame: Frame) -> None:
        """See `Step`."""
        out: Channel = frame.cells[self.out.index]
        kind = OrderedFlat if self.ordered else Flat
        reader = kind(frame.value(self.source), out)
        frame.parts[reader] = None
        reader.start()
        _until(frame, out)


class Flat(Reader):
    """Reads the outer stream, and each inner one by an `Inner`."""

    __slots__ = ("inners", "out", "outer", "total")

    def __init__(self, outer: Channel, out: Channel) -> None:
        super().__init__()
        self.outer = outer
        self.out = out
        self.inners: list[Inner] = []
        self.total = 0

    def start(self) -> None:
        """Read from the beginning on."""
        self.outer.attach(self)
        self.news()

    def news(self) -> None:
        """See `Reader`."""
        self.started = True
        while self.cursor < len(self.outer.items):
            at = self.cursor
            self.cursor += 1
            inner = Inner(self, self.outer.indices[at], self.outer.items[at])
            self.inners.append(inner)
            inner.log.attach(inner)
            inner.news()
        self.check()

    def came(self, inner: Inner, index: Any, value: Any) -> None:
        """A child of a child."""
        self.out.put((inner.index, index), value)

    def check(self) -> None:
        """The total is known only once both levels have ended."""
        counts = [count for inner in self.inners if (count := inner.log.count) is not None]
        if self.outer.ended and len(counts) == self.outer.count:
            self.out.end(sum(counts))

    def retracted(self) -> None:
        """See `Reader`."""
        self.leave()
        self.out.retract()

    def leave(self) -> None:
        """Read none of the inner streams any more."""
        for inner in self.inners:
            inner.log.detach(inner)
        self.inners.clear()

    def cancel(self) -> None:
        """See `Part`."""
        self.outer.detach(self)
        self.leave()

    def inner_retracted(self, inner: Inner) -> None:
        """A part of what was handed on is taken back, so all of it is: counts and indices are those of the whole."""
        self.leave()
        self.out.retract()
        self.cursor = 0
        self.news()


class Inner(Reader):
    """Reads one stream of a stream of streams."""

    __slots__ = ("index", "log", "outer")

    def __init__(self, outer: Flat, index: Any, log: Channel) -> None:
        super().__init__()
        self.outer = outer
        self.index = index
        self.log = log

    def news(self) -> None:
        """See `Reader`."""
        self.started = True
        while self.cursor < len(self.log.items):
            at = self.cursor
            self.cursor += 1
            self.outer.came(self, self.log.indices[at], self.log.items[at])
        if self.log.ended:
            self.outer.check()

    def retracted(self) -> None:
        """See `Reader`."""
        self.outer.inner_retracted(self)


class OrderedFlat(Flat):
    """In the order of both indices, numbered anew: what comes early is kept until all before it is there."""

    __slots__ = ("_by_index", "_early", "_number", "_turn")

    def __init__(self, outer: Channel, out: Channel) -> None:
        super().__init__(outer, out)
        self._begin()

    def _begin(self) -> None:
        self._early: dict[int, dict[int, Any]] = {}
        self._turn = (0, 0)  # whose turn it is: the inner stream, and the child of it
        self._number = 0

    def came(self, inner: Inner, index: Any, value: Any) -> None:
        """See `Flat`."""
        self._early.setdefault(inner.index, {})[index] = value
        self._hand_on()

    def check(self) -> None:
        """See `Flat`."""
        self._hand_on()
        super().check()

    def leave(self) -> None:
        """See `Flat`."""
        super().leave()
        self._begin()

    def _hand_on(self) -> None:
        while True:
            at, child = self._turn
            inner = next((inner for inner in self.inners if inner.index == at), None)
            if inner is None:
                if at not in self.outer.gaps:
                    return
                self._turn = (at + 1, 0)
            elif child in (early := self._early.get(at, {})):
                self._turn = (at, child + 1)
                self._number += 1
                self.out.put(self._number - 1, early.pop(child))
            elif child in inner.log.gaps:
                self._turn = (at, child + 1)
            elif inner.log.counted == child:
                self._turn = (at + 1, 0)
            else:
                return


class WholeStep:
    """Streams and texts as values, once they are complete, and, of several edges, together: `gather` and `join`."""

    def __init__(self, name: str, sources: tuple[Edge, ...], make: Callable[[list[Any]], Any], out: Edge) -> None:
        self.name = name
        self.sources = sources
        self.make = make
        self.out: Edge = out

    def open(self, frame: Frame) -> None:
        """See `Step`."""
        values: list[Any] = [None] * len(self.sources)
        missing = len(values)

        def take(at: int, value: Any) -> None:
            nonlocal missing
            values[at] = value
            missing -= 1
            if not missing and frame.live:
                frame.set(self.out, self.make(values))
                frame.step_done()

        def came(at: int, value: Any) -> None:
            if isinstance(value, Log):
                value.when_complete(lambda: take(at, whole(value)))
            else:
                take(at, value)

        for at, source in enumerate(self.sources):
            frame.when(source, functools.partial(came, at))


class SpreadStep:
    """A list into a stream of what is in it."""

    def __init__(self, source: Edge, out: Edge) -> None:
        self.name = "each"
        self.source = source
        self.out: Edge = out

    def open(self, frame: Frame) -> None:
        """See `Step`."""
        frame.when(self.source, functools.partial(self._spread, frame))

    def _spread(self, frame: Frame, values: Any) -> None:
        frame.set(self.out, list(values))
        frame.step_done()


def _until(frame: Frame, out: Log) -> None:
    """The step is over once what it makes is complete."""
    out.when_complete(frame.step_done)
