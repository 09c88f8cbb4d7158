"""`map` at run time: a frame of its body for each child of a stream, in flight side by side, as many as there is room.

A body that is a single call which runs inline needs no frame: the child's ancestry is that of the stream and its index.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from foreserve.clock import now
from foreserve.pipelines.channel import Channel
from foreserve.pipelines.failing import Default, Dropped, Failed
from foreserve.pipelines.frame import Frame
from foreserve.pipelines.log import Log, Reader, unhandled
from foreserve.pipelines.plan import Edge, Scope, is_log, sources_of

log = logging.getLogger(__name__)


class MapStep:
    """Runs `body` for each child of `source`. `element` is the child there, `result` what becomes of it."""

    def __init__(self, source: Edge, body: Scope, element: Edge, result: Edge, out: Edge, failed: Failed) -> None:
        self.name = body.name
        self.source = source
        self.body = body
        self.element = element
        self.result = result
        self.out: Edge = out
        self.failed = failed
        self.inline: Callable[[Any], Any] | None = None
        """The whole body, where it is one inline call."""
        self.at_end = not is_log(result.kind) and beside(body, result)
        """Whether a child's result waits for the end of its frame: something else of it may fail, and drop it."""

    def open(self, frame: Frame) -> None:
        """See `Step`."""
        source, out = frame.value(self.source), frame.cells[self.out.index]
        kind = FrameMap if self.inline is None else InlineMap
        reader = kind(self, frame, source, out)
        frame.parts[reader] = None
        source.attach(reader)
        for index in source.gaps:
            reader.dropped(index)
        reader.news()


def beside(body: Scope, result: Edge) -> bool:
    """Whether a body has steps that its result does not come of."""
    needed, left = {result}, [step for step in body.steps if step.out is not None]
    for step in reversed(left):
        if step.out in needed:
            needed.update(sources_of(step))
            if (inner := getattr(step, "body", None)) is not None:
                needed.update(edge for each in inner.steps for edge in sources_of(each))
    return any(step.out not in needed for step in left)


class _Map(Reader):
    """What both ways have in common: they read children and say when the last is over."""

    __slots__ = ("busy", "frame", "out", "over", "source", "step")

    def __init__(self, step: MapStep, frame: Frame, source: Channel, out: Channel) -> None:
        super().__init__()
        self.step = step
        self.frame = frame
        self.source = source
        self.out = out
        self.busy = False
        self.over = False

    def dropped(self, index: Any) -> None:
        """See `Reader`."""
        self.out.drop(index)

    def cancel(self) -> None:
        """See `Part`."""
        self.over = True
        self.source.detach(self)

    def retracted(self) -> None:
        """See `Reader`."""
        self.out.retract()

    def end(self) -> None:
        """All children are over."""
        source = self.source
        if self.over or not source.ended or self.cursor < len(source.items):
            return
        self.over = True
        source.detach(self)
        self.frame.parts.pop(self, None)
        assert source.counted is not None
        self.out.end(source.counted)
        self.frame.run.learned.fanned_out(self.step.name, source.counted)
        self.frame.step_done()

    def child_failed(self, index: Any, error: BaseException) -> bool:
        """What becomes of it. False when the whole map has failed with it."""
        failed = self.step.failed
        held = self._held(index)
        if isinstance(error, Dropped) or failed == "drop":
            if held is None:
                self.out.drop(index)
            else:
                _empty(held)
        elif isinstance(failed, Default):
            if held is None:
                self.out.put(index, failed.value)
            else:
                held.retract()
                _fill(held, failed.value)
        else:
            self.frame.fail(error)
            return False
        return True

    def _held(self, index: Any) -> Log | None:
        """What was handed on of a child already, where that comes bit by bit."""
        if is_log(self.step.result.kind) and index in self.out.indices:
            return self.out.items[self.out.indices.index(index)]  # type: ignore[no-any-return]
        return None


class InlineMap(_Map):
    """Calls the body's one stage for each child as it comes."""

    __slots__ = ()

    def news(self) -> None:
        """See `Reader`."""
        if self.busy or self.over:
            return
        self.busy = self.started = True
        source, out, call = self.source, self.out, self.step.inline
        items, indices = source.items, source.indices
        assert call is not None
        while (at := self.cursor) < len(items):
            if not out.open:
                out.when_open(self.news)
                break
            self.cursor = at + 1
            index = indices[at]
            span = self.frame.run.notes(self.step.body.steps[0].name, self.frame, (self.step.body.name, index))
            try:
                value = call(items[at])
            except Exception as error:
                if span is not None:
                    span.end(now(), "failed")
                if unhandled(error):
                    log.error("stage %s of %s failed", self.step.name, self.frame.run.id, exc_info=error)
                if not self.child_failed(index, error):
                    return
                continue
            if span is not None:
                span.end(now(), "done")
            out.put(index, value)
        self.busy = False
        if source._gated is not None:
            source.advanced()
        if source.ended:
            self.end()


class FrameMap(_Map):
    """Opens a frame of the body for each child while the request has room for more."""

    __slots__ = ("_frames",)

    def __init__(self, step: MapStep, frame: Frame, source: Channel, out: Channel) -> None:
        super().__init__(step, frame, source, out)
        self._frames: dict[Frame, None] = {}

    def news(self) -> None:
        """See `Reader`."""
        if self.busy or self.over:
            return
        self.busy = self.started = True
        source, out = self.source, self.out
        while self.cursor < len(source.items) and self.frame.live:
            if len(self._frames) >= self.frame.run.share():
                break
            if not out.open:
                out.when_open(self.news)
                break
            at = self.cursor
            self.cursor += 1
            self._open(source.indices[at], source.items[at])
        self.busy = False
        if source._gated is not None:
            source.advanced()
        if source.ended and not self._frames:
            self.end()

    def _open(self, index: Any, value: Any) -> None:
        step = self.step
        inner = Frame(self.frame.run, step.body, self.frame, index, self)
        self._frames[inner] = None
        inner.cells[step.element.index] = value
        if is_log(step.result.kind):
            self.out.put(index, inner.value(step.result))
        elif not step.at_end:
            inner.when(step.result, functools.partial(self._came, inner, index))
        inner.start()

    def _came(self, inner: Frame, index: Any, value: Any) -> None:
        if inner in self._frames:
            self.out.put(index, value)

    def frame_done(self, frame: Frame) -> None:
        """See `Owner`."""
        if self.step.at_end and frame in self._frames:
            self.out.put(frame.index, frame.value(self.step.result))
        self._frames.pop(frame, None)
        self.news()

    def frame_failed(self, frame: Frame, error: BaseException) -> None:
        """See `Owner`."""
        self._frames.pop(frame, None)
        if self.child_failed(frame.index, error):
            self.news()

    def cancel(self) -> None:
        """See `Part`."""
        super().cancel()
        self._end_frames()

    def retracted(self) -> None:
        """See `Reader`."""
        self._end_frames()
        super().retracted()

    def _end_frames(self) -> None:
        frames, self._frames = self._frames, {}
        for frame in frames:
            frame.cancel()


def _empty(held: Log) -> None:
    held.retract()
    _fill(held, "" if not isinstance(held, Channel) else ())


def _fill(held: Any, value: Any) -> None:
    if isinstance(held, Channel):
        for index, item in enumerate(value):
            held.put(index, item)
        held.end(len(value))
    else:
        held.append(value)
        held.close()
