"""One child of one scope at run time: what is on its edges, what of it still runs, and its place in the ancestry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from foreserve.pipelines.channel import Channel
from foreserve.pipelines.plan import Edge, Scope
from foreserve.pipelines.text import Text

if TYPE_CHECKING:
    from foreserve.pipelines.run import Run

UNSET: Any = object()

Ancestry = tuple[tuple[str, Any], ...]
"""Where something belongs: (scope, index) of each level, outermost first."""


class Owner(Protocol):
    """Who made a frame, and hears how it ends."""

    def frame_done(self, frame: Frame) -> None: ...
    def frame_failed(self, frame: Frame, error: BaseException) -> None: ...


class Part(Protocol):
    """Something of a frame that runs, and is ended with it."""

    def cancel(self) -> None: ...


class Frame:
    """The values of one child's edges, by number; those that come bit by bit are there, empty, from the beginning on.

    It is done once every step of its scope is. When one fails the others are cancelled first.
    """

    __slots__ = ("_unfinished", "_waiting", "cells", "index", "live", "owner", "parent", "parts", "run", "scope")

    def __init__(self, run: Run, scope: Scope, parent: Frame | None, index: Any, owner: Owner) -> None:
        self.run = run
        self.scope = scope
        self.parent = parent
        self.index = index
        self.owner = owner
        self.live = True
        self.cells: list[Any] = [UNSET] * scope.size
        self.parts: dict[Part, None] = {}
        self._unfinished = len(scope.steps)
        self._waiting: dict[int, list[Callable[[Any], None]]] | None = None
        for number, is_text, ordered in scope.logs:
            self.cells[number] = Text() if is_text else Channel(ordered=ordered)

    @property
    def ancestry(self) -> Ancestry:
        """Its place, outermost first; empty for the request itself."""
        return () if self.parent is None else (*self.parent.ancestry, (self.scope.name, self.index))

    def start(self) -> None:
        """Open every step."""
        self.run.frames += 1
        steps = self.scope.steps
        if not steps:
            self._over()
            return
        for step in steps:
            step.open(self)
            if not self.live:
                return

    # --- values

    def value(self, edge: Edge) -> Any:
        """What is on an edge of this scope or one around it; UNSET where nothing is yet."""
        frame = self
        while frame.scope is not edge.scope:
            frame = frame.parent  # type: ignore[assignment]
        return frame.cells[edge.index]

    def when(self, edge: Edge, tell: Callable[[Any], None]) -> None:
        """Call `tell` with what is on an edge, at once where it is there."""
        frame = self
        while frame.scope is not edge.scope:
            frame = frame.parent  # type: ignore[assignment]
        value = frame.cells[edge.index]
        if value is not UNSET:
            tell(value)
            return
        if frame._waiting is None:
            frame._waiting = {}
        frame._waiting.setdefault(edge.index, []).append(tell)

    def set(self, edge: Edge, value: Any) -> None:
        """What a step of this frame has made. A text that was promised as live takes it as its whole."""
        number = edge.index
        held = self.cells[number]
        if held is UNSET:
            self.cells[number] = value
            if self._waiting is not None:
                for tell in self._waiting.pop(number, ()):
                    tell(value)
        elif isinstance(held, Text):
            held.append(value)
            held.close()
        else:
            for index, item in enumerate(value):
                held.put(index, item)
            held.end(len(value))

    # --- how it ends

    def step_done(self) -> None:
        """One of its steps is over."""
        self._unfinished -= 1
        if not self._unfinished and self.live:
            self._over()

    def _over(self) -> None:
        self.live = False
        self.run.frames -= 1
        self.owner.frame_done(self)

    def fail(self, error: BaseException) -> None:
        """One of its steps has failed: all of its subtree ends, and its owner says what that means."""
        if self.live:
            self.cancel()
            self.owner.frame_failed(self, error)

    def cancel(self) -> None:
        """End everything below, engines too. What has ended already stays so."""
        if not self.live:
            return
        self.live = False
        self.run.frames -= 1
        parts, self.parts = self.parts, {}
        for part in reversed(parts):
            part.cancel()
