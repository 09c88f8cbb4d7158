"""One request on its way through a pipeline."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final

from foreserve.clock import now
from foreserve.errors import ClientGone, Expired
from foreserve.pipelines.channel import Channel
from foreserve.pipelines.events import Event, Events
from foreserve.pipelines.failing import Dropped
from foreserve.pipelines.floor import Floor
from foreserve.pipelines.frame import Frame
from foreserve.pipelines.invoking import CallStep, Invocation
from foreserve.pipelines.learned import Learned
from foreserve.pipelines.log import raised, whole
from foreserve.pipelines.plan import Edge, Plan
from foreserve.pipelines.shapes import is_stream
from foreserve.pipelines.text import Text
from foreserve.pipelines.timeline import Span, Timeline

_NO_GATE: Final = nullcontext()

ONLY: Final = "result"
"""The name of the output of a pipeline that returns a single flow."""


class Run:
    """A request: begin with `start`, then read `events` or wait for `result`. `cancel` ends it with all it has begun.

    `services` is what stages that run elsewhere ask for them; `arrival` and `deadline` are loop seconds.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Mapping[str, Any],
        *,
        id: str = "run",
        floor: Floor | None = None,
        arrival: float | None = None,
        deadline: float | None = None,
        tenant: str = "default",
        services: Any = None,
        timeline: Timeline | None = None,
        learned: Learned | None = None,
        streaming: bool = True,
    ) -> None:
        self.id = id
        self.plan = plan
        self.arrival = now() if arrival is None else arrival
        self.deadline = deadline
        self.tenant = tenant
        self.services = services
        self.timeline = timeline
        self.streaming = streaming
        """Whether a stage hands on what it makes as it makes it."""
        self.learned = learned or Learned()
        self.events = Events()
        """What its client is told."""
        self.frames = 0
        """In flight."""
        self.invocations = 0
        """Tasks of stages in flight."""
        self.error: BaseException | None = None
        self.over = False
        self._floor = floor or Floor()
        self._root = Frame(self, plan.root, None, None, self)
        self._inputs = dict(inputs)
        self._ended: list[Callable[[Run], None]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._done: dict[str, tuple[int, float]] = {}  # of each stage: calls that are done, the sum of when they were

    # --- its life

    def start(self, *, listens: bool = False) -> Run:
        """Begin. With `listens`, `events` are kept for whoever reads them."""
        self._floor.running += 1
        self.events.listens = listens
        for name, edge in self.plan.inputs.items():
            self._root.cells[edge.index] = _given(edge, self._inputs[name])
        if self.deadline is not None:
            self._alarm = asyncio.get_running_loop().call_at(self.deadline, self._expired)
        if listens:
            for name, edge in self.plan.outputs.items():
                self._root.when(edge, functools.partial(self.events.watch, name, ()))
        self._root.start()
        return self

    def cancel(self, reason: str = "the client went away") -> None:
        """End it, with every stage and service that works for it. It does nothing to a request that is over."""
        self._stop(ClientGone(reason))

    def close(self) -> None:
        """As `cancel`."""
        self.cancel()

    def _expired(self) -> None:
        self._stop(Expired("the deadline passed while the pipeline ran"))

    def _stop(self, error: BaseException) -> None:
        if not self.over:
            self._root.cancel()
            self._end(error)

    def broken(self, error: BaseException) -> None:
        """Something of it cannot go on, for a reason that is none of its stages'."""
        self._root.fail(error)

    def frame_done(self, frame: Frame) -> None:
        """See `frame.Owner`: all of it is done."""
        self._end(None)

    def frame_failed(self, frame: Frame, error: BaseException) -> None:
        """See `frame.Owner`."""
        self._end(error.__cause__ or error if isinstance(error, Dropped) else error)

    def _end(self, error: BaseException | None) -> None:
        self.over = True
        self.error = error
        self._floor.running -= 1
        if self._alarm is not None:
            self._alarm.cancel()
        if error is None:
            for name, (calls, total) in self._done.items():
                self.learned.followed(name, now() - total / calls)
        self.events.close()
        told, self._ended = self._ended, []
        for tell in told:
            tell(self)

    def when_ended(self, tell: Callable[[Run], None]) -> None:
        """Call `tell` once it is over, at once where it is."""
        if self.over:
            tell(self)
        else:
            self._ended.append(tell)

    # --- what comes of it

    async def each(self) -> AsyncIterator[Event]:
        """Every event as it comes. Raises what the request failed with."""
        while (events := await self.events.next()) is not None:
            for event in events:
                yield event
        if self.error is not None:
            raise raised(self.error)

    async def result(self) -> Any:
        """What the pipeline returned: one value, or a dict by name. Raises what the request failed with.

        Cancelled, it cancels the request.
        """
        if not self.over:
            done = asyncio.get_running_loop().create_future()
            self.when_ended(lambda _: None if done.done() else done.set_result(None))
            try:
                await done
            except asyncio.CancelledError:
                self.cancel("whoever waited for the result was cancelled")
                raise
        return self.value()

    def value(self) -> Any:
        """As `result`, of a request that is over."""
        if self.error is not None:
            raise raised(self.error)
        values = {name: whole(self._root.cells[edge.index]) for name, edge in self.plan.outputs.items()}
        return values[ONLY] if set(values) == {ONLY} else values

    def streams(self) -> list[Channel]:
        """The streams of its outermost level, in the order in which they were written."""
        return [cell for cell in self._root.cells if isinstance(cell, Channel)]

    # --- what its parts ask

    def share(self) -> int:
        """How many frames each of its maps may have in flight."""
        return self._floor.share()

    def turn(self, step: CallStep) -> AbstractAsyncContextManager[None]:
        """Inside of it a stage may run."""
        limit = step.stage.concurrency
        return _NO_GATE if limit is None else self._floor.gate(step, limit).turn(self.id, self.arrival)

    def begins(self, invocation: Invocation) -> Span:
        """A stage's call begins."""
        span = Span(invocation.step.name, invocation.ancestry, now())
        if self.timeline is not None:
            self.timeline.add(span)
        return span

    def notes(self, name: str, frame: Frame, *child: tuple[str, Any]) -> Span | None:
        """A call begins that is over before anybody else has his turn; `None` where nobody looks at it.

        It is of the frame's own, or of a `child` of it that has no frame.
        """
        if self.timeline is None:
            return None
        span = Span(name, (*frame.ancestry, *child), now())
        self.timeline.add(span)
        return span

    def ends(self, span: Span, how: str) -> None:
        """It has ended: "done", "failed" or "cancelled"."""
        span.end(now(), how)
        if how == "done":
            self.learned.took(span.name, span.seconds)
            calls, total = self._done.get(span.name, (0, 0.0))
            self._done[span.name] = calls + 1, total + now()


def _given(edge: Edge, value: Any) -> Any:
    """An input as its edge holds it."""
    if edge.kind is Text and isinstance(value, str):
        return Text.of(value)
    if is_stream(edge.kind) and not isinstance(value, Channel):
        channel = Channel()
        for index, item in enumerate(value):
            channel.put(index, item)
        channel.end(len(channel.items))
        return channel
    return value
