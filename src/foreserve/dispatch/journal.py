"""A file of lines that grows while a server runs: written by one thread, bounded, and whole up to where it ends."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from foreserve.errors import ConfigError

log = logging.getLogger(__name__)

MOST_BYTES: Final = 1 << 30
BUFFER_LINES: Final = 65_536
CLOSED: Final = "closed"
"""Why a journal ends that has all its lines."""

LINGER_S: Final = 0.05
"""How long the writer waits for more lines, so that a busy server writes seldom."""


class Journal:
    """Lines of JSON. Whoever writes never waits; a line that cannot be kept ends the journal, for a gap is worse.

    Raises ConfigError when the file cannot be written. One that is there already is kept as `….previous`. Without
    `threaded` lines are written at once, as a virtual loop needs it. `last` makes a last line of why it ends, beyond
    `most_bytes`; there is none where the disk fails.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        *,
        threaded: bool,
        most_bytes: int = MOST_BYTES,
        buffer: int = BUFFER_LINES,
        last: Callable[[str], bytes] | None = None,
    ) -> None:
        self.path = path
        self.stopped = ""
        """Why no more is written, in words."""
        self._what = what
        self._last = last
        self._most_bytes = most_bytes
        self._bytes = 0
        self._over = False
        """A line was cut off, or the last is written: there must be none after it."""
        self._lines: queue.Queue[bytes | None] = queue.Queue(buffer)
        self._hurry = threading.Event()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                path.replace(path.with_name(path.name + ".previous"))
            # Without a buffer of Python's: nothing is left in one that a later call might write.
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"{what} {path} cannot be written: {error}; valid: a file in a folder that can be"
            ) from None
        self._writer: threading.Thread | None = None
        if threaded:
            self._writer = threading.Thread(target=self._write, name=f"foreserve-{path.stem}", daemon=True)
            self._writer.start()

    def put(self, line: bytes) -> None:
        """Keep one line, without its end. Ignored once the journal has stopped."""
        if self.stopped:
            return
        self._bytes += len(line) + 1
        if self._bytes > self._most_bytes:
            self.stop(f"it is full: it may have {self._most_bytes:,} bytes")
        elif self._writer is None:
            self._append([line])
        else:
            try:
                self._lines.put_nowait(line)
            except queue.Full:
                self.stop("lines came faster than they could be written")

    def stop(self, why: str) -> None:
        """Write no more. Said in the log, once."""
        if not self.stopped:
            self.stopped = why
            log.warning("%s %s ends here: %s", self._what, self.path, why)
            if self._writer is None:
                self._end()
            else:
                with contextlib.suppress(queue.Full):  # then it is awake, and looks when it is through
                    self._lines.put_nowait(b"")

    def close(self, limit_s: float = 5.0) -> None:
        """Write what is left, for at most about `limit_s`. Idempotent."""
        if self._writer is None:
            if not self._file.closed:
                self._end()
                self._file.close()
        elif self._writer.is_alive():
            self._hurry.set()
            try:
                self._lines.put(None, timeout=limit_s)
            except queue.Full:
                pass  # the disk hangs: what is written by then is what there is
            self._writer.join(limit_s)
        self.stopped = self.stopped or CLOSED

    def _append(self, lines: list[bytes]) -> None:
        if not lines or self._over:
            return
        rest = memoryview(b"\n".join(lines) + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except (OSError, ValueError) as error:
            self._over = True
            self.stop(str(error))

    def _end(self) -> None:
        """Write the last line, once."""
        if self._last is not None:
            self._append([self._last(self.stopped or CLOSED)])
        self._over = True

    def _write(self) -> None:
        """The writer's thread."""
        last = False
        while not last:
            lines = [self._lines.get()]
            self._hurry.wait(LINGER_S)
            while not self._lines.empty():
                lines.append(self._lines.get_nowait())
            last = None in lines
            self._append([line for line in lines if line])
            if last or (self.stopped and self._lines.empty()):
                self._end()
        self._file.close()
