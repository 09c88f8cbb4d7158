"""A stage's step: its arguments come together, it is called, and what it gives goes on."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any

from foreserve.clock import now
from foreserve.errors import ReplicaLost
from foreserve.pipelines.failing import Default, Dropped
from foreserve.pipelines.frame import UNSET, Ancestry, Frame
from foreserve.pipelines.giving import Argument, Mode
from foreserve.pipelines.log import Log, Recall, unhandled, whole
from foreserve.pipelines.plan import Edge
from foreserve.pipelines.shapes import is_stream
from foreserve.pipelines.stage import Stage
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text
from foreserve.pipelines.timeline import Span

log = logging.getLogger(__name__)

TURN = 64
"""After how many items without a wait a generator lets the loop go round."""


class CallStep:
    """Calls a stage once in each frame."""

    def __init__(self, stage: Stage, arguments: tuple[Argument, ...], out: Edge) -> None:
        self.stage = stage
        self.name = stage.name
        self.arguments = arguments
        self.out: Edge = out
        self.inline = stage.call_now() if stage.runs == "inline" else None

    def open(self, frame: Frame) -> None:
        """See `Step`."""
        values: list[Any] = []
        for argument in self.arguments:
            value = argument.constant if argument.edge is None else frame.value(argument.edge)
            if argument.mode is Mode.WHOLE and isinstance(value, Log):
                value = value.whole() if value.complete else UNSET
            if not argument.at_once and value is UNSET:
                _Waiting(self, frame)
                return
            values.append(value)
        self.call(frame, values)

    def call(self, frame: Frame, values: list[Any]) -> None:
        """All that had to be there is: `values`, in the order of `arguments`."""
        if self.inline is None or not all(argument.mode in _PLAIN for argument in self.arguments):
            Invocation(self, frame, values).begin()
            return
        span = frame.run.notes(self.name, frame)
        try:
            result = self.inline(*values)
        except Exception as error:
            if span is not None:
                span.end(now(), "failed")
            self.failed(frame, error)
            return
        if span is not None:
            span.end(now(), "done")
        frame.set(self.out, result)
        frame.step_done()

    def failed(self, frame: Frame, error: BaseException) -> None:
        """A call has failed for good."""
        if unhandled(error):
            log.error("stage %s of %s failed", self.name, frame.run.id, exc_info=error)
        match self.stage.failed:
            case Default(value=value):
                held = frame.cells[self.out.index]
                if isinstance(held, Log) and held.items:
                    held.retract()
                frame.set(self.out, value)
                frame.step_done()
            case "drop":
                dropped = Dropped(str(error))
                dropped.__cause__ = error
                frame.fail(dropped)
            case _:
                frame.fail(error)


_PLAIN = (Mode.VALUE, Mode.WHOLE)


class _Waiting:
    """A call whose arguments are not all there yet."""

    __slots__ = ("_frame", "_missing", "_step", "_values")

    def __init__(self, step: CallStep, frame: Frame) -> None:
        self._step = step
        self._frame = frame
        self._values: list[Any] = [None] * len(step.arguments)
        self._missing = sum(not argument.at_once for argument in step.arguments)
        for at, argument in enumerate(step.arguments):
            if argument.edge is None:
                self._values[at] = argument.constant
            elif argument.at_once:
                self._values[at] = frame.value(argument.edge)
            else:
                frame.when(argument.edge, functools.partial(self._came, at))

    def _came(self, at: int, value: Any) -> None:
        if self._step.arguments[at].mode is Mode.WHOLE and isinstance(value, Log):
            value.when_complete(functools.partial(self._complete, at, value))
        else:
            self._take(at, value)

    def _complete(self, at: int, held: Log) -> None:
        self._take(at, whole(held))

    def _take(self, at: int, value: Any) -> None:
        self._values[at] = value
        self._missing -= 1
        if not self._missing and self._frame.live:
            self._step.call(self._frame, self._values)


class Invocation:
    """One call in a task of its own: what it reads, what it gives, and its attempts.

    The log of an edge keeps what was given to it, so that a call can be made again from its beginning.
    """

    __slots__ = ("_frame", "_streams", "_task", "_unwanted", "_values", "attempt", "span", "step")

    def __init__(self, step: CallStep, frame: Frame, values: list[Any]) -> None:
        self.step = step
        self.attempt = 0
        self._frame = frame
        self._values = values
        self.span: Span | None = None
        """Its place on the timeline, once it has begun."""
        self._task: asyncio.Task[None] | None = None
        self._unwanted = False
        self._streams: list[Stream[Any] | Recall] = []

    @property
    def run(self) -> Any:
        """The request it is made for."""
        return self._frame.run

    @property
    def ancestry(self) -> Ancestry:
        """The child it is made for."""
        return self._frame.ancestry

    @property
    def depth(self) -> int:
        """How many steps of its pipeline lie before it."""
        return self._frame.scope.plan.depths.get(self.step, 0)

    def begin(self) -> None:
        """Start."""
        self._frame.parts[self] = None
        self._frame.run.invocations += 1
        self._task = asyncio.get_running_loop().create_task(self._drive(self._arguments()))
        self._task.add_done_callback(self._over)

    def cancel(self) -> None:
        """See `Part`. Whatever it has asked of a service is cancelled with its task."""
        self._unwanted = True
        if self._task is not None:
            self._task.cancel()
        self._close()

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def _arguments(self) -> list[Any]:
        given: list[Any] = []
        for argument, value in zip(self.step.arguments, self._values, strict=True):
            match argument.mode:
                case Mode.LIVE if is_stream(argument.edge.kind):  # type: ignore[union-attr]
                    stream = Stream[Any](value, argument.convert)
                    stream.on_retract = self._begin_anew
                    self._streams.append(stream)
                    given.append(stream)
                case Mode.LIVE:
                    self._streams.append(Recall(value, self._begin_anew))
                    given.append(value)
                case Mode.AS_TEXT:
                    given.append(Text.of(value))
                case Mode.LATER:
                    given.append(self._later(argument, value))
                case _:
                    given.append(value)
        return given

    def _later(self, argument: Argument, value: Any) -> Awaitable[Any]:
        future = asyncio.get_running_loop().create_future()

        def came(value: Any) -> None:
            if isinstance(value, Log):
                value.when_complete(lambda: came(value.whole()))
            elif not future.done():
                future.set_result(value)

        assert argument.edge is not None
        self._frame.when(argument.edge, came)
        return future

    def _begin_anew(self) -> None:
        """What it had read was taken back: so is what it made of that."""
        if self._unwanted or self._task is None or self._task.done():
            return
        self.cancel()
        self._frame.parts.pop(self, None)
        self._take_back()
        following = Invocation(self.step, self._frame, self._values)
        following.attempt = self.attempt + 1
        following.begin()

    def _take_back(self) -> None:
        out = self._frame.cells[self.step.out.index]
        if isinstance(out, Log):
            out.retract()

    async def _drive(self, given: list[Any]) -> None:
        step, frame, run = self.step, self._frame, self._frame.run
        span = self.span = run.begins(self)
        try:
            while True:
                try:
                    async with run.turn(step):
                        await self._attempt(given)
                    break
                except ReplicaLost:
                    if self.attempt + 1 >= step.stage.attempts:
                        raise
                    self.attempt += 1
                    if step.stage.again == "retract":
                        self._take_back()
                    self._close()
                    given = self._arguments()
        except asyncio.CancelledError as error:
            run.ends(span, "cancelled")
            if not self._unwanted:  # something that the stage waited for was cancelled, not the stage
                self._failed(RuntimeError(f"stage {step.name} was cancelled from within"), error)
            raise
        except Exception as error:
            run.ends(span, "failed")
            self._failed(error)
        else:
            run.ends(span, "done")
            self._leave()
            if frame.live:
                frame.step_done()

    def _failed(self, error: Exception, cause: BaseException | None = None) -> None:
        if cause is not None:
            error.__cause__ = cause
        self._leave()
        if self._frame.live:
            self.step.failed(self._frame, error)

    def _leave(self) -> None:
        self._close()
        self._frame.parts.pop(self, None)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._frame.run.invocations -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self._frame.run.broken(error)  # what it gave could not be handed on

    async def _attempt(self, given: list[Any]) -> None:
        step, frame = self.step, self._frame
        arguments = [self, *given] if step.stage.in_context else given
        made = step.stage.code(*arguments)
        if step.stage.runs == "items":
            await self._hand_on(made if hasattr(made, "__aiter__") else _each(made))
            return
        result = await made if inspect.isawaitable(made) else made
        if frame.live:
            frame.set(step.out, result)

    async def _hand_on(self, items: AsyncIterator[Any]) -> None:
        """Each item as it is made, no faster than they are taken."""
        out = self._frame.cells[self.step.out.index]
        count = 0
        async with aclosing(items if self.run.streaming else _all_at_once(items)) as made:  # type: ignore[type-var]
            async for item in made:
                if isinstance(out, Text):
                    out.append(item, None if self.step.stage.again == "retract" else count)
                else:
                    out.put(count, item)
                count += 1
                if not out.open:
                    await out.until_open()
                elif not count % TURN:
                    await asyncio.sleep(0)
        if isinstance(out, Text):
            out.close()
        else:
            out.end(count)


async def _all_at_once(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for item in [item async for item in items]:
        yield item


async def _each(items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item
