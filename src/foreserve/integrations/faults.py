"""Counts what goes wrong in a policy of ours inside another system, which must not notice; logs it ever more rarely."""

from __future__ import annotations

import logging
from types import TracebackType


class Faults:
    """`with faults:` swallows and notes any exception. The 1st, 2nd, 4th, 8th, … is logged, with its traceback."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self.count = 0
        self._log = log
        self._what = what

    def note(self) -> None:
        """The exception that is being handled."""
        self.count += 1
        if self.count & (self.count - 1) == 0:
            self._log.exception("%s failed (%d times so far); it is done without", self._what, self.count)

    def __enter__(self) -> Faults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is None or not issubclass(kind, Exception):
            return False
        self.count += 1
        if self.count & (self.count - 1) == 0:
            self._log.error("%s failed (%d times so far)", self._what, self.count, exc_info=error)
        return True
