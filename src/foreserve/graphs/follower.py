"""A read replica: a graph that applies what the writer's log says, as it comes."""

from __future__ import annotations

from pathlib import Path

from foreserve.graphs import log as log_
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.log import LogBroken
from foreserve.graphs.recomputed import RecomputedGraph


class Follower:
    """Reads the log in `folder` on from the version of `graph`, as far as its writer has acknowledged what is there.

    Not for several threads at once.
    """

    def __init__(self, graph: LiveGraph | RecomputedGraph, folder: Path) -> None:
        self._graph = graph
        self._folder = folder
        self._path: Path | None = None
        self._at = 0
        self._most = 0

    @property
    def caught_up(self) -> bool:
        """Whether the last `catch_up` got to what was acknowledged when it began."""
        return self._graph.store.version >= self._most

    def stuck(self) -> LogBroken:
        """What to tell where `caught_up` stays false though nothing more is applied."""
        return LogBroken(
            f"{self._path or self._folder}: entry {self._graph.store.version + 1} does not read, "
            f"but entries up to {self._most} were acknowledged; restore the file"
        )

    def catch_up(self) -> int:
        """Apply what was acknowledged when it began; how many entries. Fewer where one does not read (yet).

        Raises LogBroken where the log has gone on without it.
        """
        applied = 0
        most = self._most = log_.acknowledged(self._folder).seen
        while self._graph.store.version < most:
            if self._path is not None and self._path.exists():
                for entry, end in log_.entries(self._path, self._at):
                    if entry.sequence > most:
                        return applied
                    self._at = end
                    if entry.sequence <= self._graph.store.version:
                        continue
                    if entry.sequence != self._graph.store.version + 1:
                        raise self._left_behind()
                    self._graph.apply(Changes.decode(entry.changes), entry.at)
                    applied += 1
            if not self._next():
                return applied
        return applied

    def _next(self) -> bool:
        """Turn to the newest file that may have the next entry, if that is another one."""
        every = log_.files(self._folder)
        wanted = self._graph.store.version + 1
        before = [path for path in every if log_.first_of(path) <= wanted]
        if not before:
            if every:
                raise self._left_behind()
            return False
        if before[-1] == self._path:
            return False
        self._path, self._at = before[-1], 0
        return True

    def _left_behind(self) -> LogBroken:
        return LogBroken(f"the log in {self._folder} has gone on without version {self._graph.store.version + 1}")
