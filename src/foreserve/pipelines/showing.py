"""`show` at run time: the client hears of an edge within each frame of its scope."""

from __future__ import annotations

import functools

from foreserve.pipelines.events import path_of
from foreserve.pipelines.frame import Frame
from foreserve.pipelines.plan import Edge


class ShowStep:
    """Tells of `source` under `name`."""

    out: Edge | None = None

    def __init__(self, name: str, source: Edge) -> None:
        self.name = name
        self.source = source

    def open(self, frame: Frame) -> None:
        """See `Step`. It is over at once: telling holds nothing up but what makes more."""
        events = frame.run.events
        if events.listens:
            frame.when(self.source, functools.partial(events.watch, self.name, path_of(frame.ancestry)))
        frame.step_done()
