"""Running the user's code in a thread that can be told to stop, as far as Python lets anybody stop a thread."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from foreserve.engines.python_values import Raised

log = logging.getLogger(__name__)

STOP_S = 1.0
"""How long code that was told to stop may take to do so. Python code stops at its next step; what waits within a C
library or the kernel does not hear."""


class Stopped(BaseException):
    """Raised within code that ran out of time. No `except Exception` of the code's own holds it up."""


class Run:
    """Runs user code in one thread at a time; `stop` raises `Stopped` in it. Both ends are safe whenever they come."""

    def __init__(self) -> None:
        self.context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._told = False

    def __call__(self, fn: Callable[[], Any]) -> Any:
        """In the thread: what `fn` returns, or what it raises as `Raised`."""
        thread = threading.get_ident()
        try:
            with self._lock:
                self._thread = thread
            try:
                result = self.context.run(fn)
            finally:
                with self._lock:
                    self._thread = None
        except BaseException as error:
            result = Raised(error)
        # Told while it ran, and perhaps not raised yet: taken back, or it would be raised in the pool's own code.
        while self._told:
            try:
                self._told = False
                _raise_in(thread, None)
            except Stopped:
                pass
        return result

    def stop(self) -> None:
        """From any other thread. Nothing happens where nothing runs."""
        with self._lock:
            if self._thread is not None and not self._told:
                self._told = True
                _raise_in(self._thread, Stopped)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error) if error else None)


class Threads:
    """A pool, made when it is first needed. `most` threads and one for each that may be left behind."""

    def __init__(self, most: int) -> None:
        self._most = 2 * most
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, run: Run, fn: Callable[[], Any], ended: Callable[[], None]) -> Future[Any]:
        """Begin; `ended` is called on the running loop once the thread is free."""
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="function")
        future = self._pool.submit(run, fn)
        future.add_done_callback(lambda _: _on_loop(loop, ended))
        return future

    def close(self) -> None:
        """Threads that do not end are left to the end of the process."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _on_loop(loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(fn)
    except RuntimeError:
        log.debug("the loop had closed before a function ended")
