"""One worker process: in a session of its own, its output logged, its end noticed, its group swept."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from foreserve.core import EngineSpec
from foreserve.runtime import bootstrap
from foreserve.runtime.ends import kill_group

log = logging.getLogger("foreserve.worker")

LAST_LINES = 64
LINE_CHARACTERS = 500
"""How much of a worker's output is kept to explain its end."""

OUTPUT_S = 0.5
"""How long after the end of a worker its output may stay open: a process that it has detached may hold it for ever."""

_LEVELS = {name: logging.getLevelName(name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}


class WorkerProcess(ABC):
    """`ended(returncode)` is called once in the loop, when the process is gone and its output has been logged.

    Its own session keeps a Ctrl-C in the terminal from it, since the gateway drains workers first. Its standard input
    is a pipe that is never written: its end tells the worker that we are gone. `returncode` is as of `Popen`, `None`
    where nobody could tell.
    """

    def __init__(
        self, name: str, pid: int, stdin: IO[bytes], output: IO[bytes], ended: Callable[[int | None], None]
    ) -> None:
        self.pid = pid
        self._name = name
        self._stdin = stdin
        self._out = output
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._alive = True
        self._returncode: int | None = None
        self._output_ended = self._told = False
        self._output: asyncio.ReadTransport | None = None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)

    async def log_output(self) -> None:
        """Log what it prints, line by line, until it prints no more."""
        self._output, _ = await self._loop.connect_read_pipe(lambda: _Lines(self._line, self._read_all), self._out)

    def last_words(self, lines: int = 3) -> str:
        """The last `lines` non-empty lines it has printed, joined by ` | `; of a crash, the first that tell of it.

        What it logged of its ordinary work explains no end.
        """
        said = [line for line in self._lines if line.strip() and not line.startswith(("DEBUG ", "INFO "))]
        crash = next((at for at, line in enumerate(said) if line.startswith("Fatal Python error")), None)
        return " | ".join(said[-lines:] if crash is None else said[crash : crash + 1 + lines])

    def terminate(self) -> None:
        """Ask it by SIGTERM."""
        if self._alive:
            self._terminate()

    def kill(self) -> None:
        """End it and whatever it has started."""
        if self._alive:
            self._kill()

    def close(self) -> None:
        """Give the pipes back."""
        if self._output is not None:
            self._output.close()
        else:
            _close(self._out)
        _close(self._stdin)

    @abstractmethod
    def _terminate(self) -> None: ...

    @abstractmethod
    def _kill(self) -> None: ...

    def _gone(self, returncode: int | None) -> None:
        """It has been reaped, and its group has been ended."""
        self._alive = False
        self._returncode = returncode
        if self._output_ended:
            self._tell()
        else:
            self._loop.call_later(OUTPUT_S, self._tell)

    def _read_all(self) -> None:
        self._output_ended = True
        if not self._alive:
            self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._ended(self._returncode)

    def _line(self, line: str) -> None:
        self._lines.append(line[:LINE_CHARACTERS])
        level, _, rest = line.partition(" ")
        if level in _LEVELS:
            log.log(_LEVELS[level], "[%s] %s", self._name, rest)
        else:
            log.info("[%s] %s", self._name, line)


class SpawnedProcess(WorkerProcess):
    """A new interpreter. Call from the thread that runs the loop: on Linux the kernel ends a worker with the thread
    that has started it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        ended: Callable[[int | None], None],
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Of our descriptors it gets `pass_fds` alone. Raises OSError when the interpreter cannot be run."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        super().__init__(name, self._process.pid, self._process.stdin, self._process.stdout, ended)
        threading.Thread(target=self._wait, name=f"foreserve-wait-{name}", daemon=True).start()

    def _terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def _kill(self) -> None:
        kill_group(self.pid)

    def _wait(self) -> None:
        """In a thread, which works for every kind of loop and Python version and costs nothing while it waits."""
        if hasattr(os, "waitid"):
            # Not reaped yet: until it is, its number cannot be another process's, so its group can be ended safely.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        try:
            self._loop.call_soon_threadsafe(self._reap)
        except RuntimeError:  # the loop was closed before us
            self._process.wait()

    def _reap(self) -> None:
        kill_group(self.pid)
        self._gone(self._process.wait())


def environment(own: Mapping[str, str], foreign: bool) -> dict[str, str]:
    """A worker's environment: ours with `own` on top.

    Waiting threads of an engine shall sleep, not spin: they would take the processor from the gateway. A `foreign`
    interpreter does not get the variables that would lead it to our packages.
    """
    env = dict(os.environ)
    if foreign:
        for name in bootstrap.OURS:
            env.pop(name, None)
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("PYTHONUNBUFFERED", "1")
    return {**env, **own}


def how_it_ended(returncode: int | None) -> str:
    """`exit code 1`, or `killed by SIGKILL`."""
    if returncode is None:
        return "exit code unknown"
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


def log_level() -> str:
    """How much our own processes shall say: as much as we do."""
    return logging.getLevelName(logging.getLogger("foreserve").getEffectiveLevel())


def interpreter(python: str | None) -> str:
    """The interpreter of a worker: the one named, else ours."""
    return python or sys.executable


def surroundings(spec: EngineSpec) -> tuple[str, dict[str, str]]:
    """The interpreter and the environment of a worker of `spec`."""
    return interpreter(spec.python), environment(spec.env, spec.python is not None)


class _Lines(asyncio.Protocol):
    """Cuts a byte stream into lines; a line without an end is cut at 64 KiB."""

    def __init__(self, line: Callable[[str], None], ended: Callable[[], None]) -> None:
        self._line = line
        self._ended = ended
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) > 65536:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            if line:
                self._line(line.decode(errors="replace"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._line(self._rest.decode(errors="replace"))
            self._rest = b""
        self._ended()


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except OSError:
            pass
