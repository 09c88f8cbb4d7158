"""A worker's copy of its weights on a device: at one address for good, given back while it is idle, there when needed.

Weights whose copy cannot be shared, for whatever reason, are no error: who asks is told so and makes a copy of its own.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from foreserve.errors import EngineStartError
from foreserve.runtime.device import Window, identity, open_window

if TYPE_CHECKING:
    from foreserve.runtime.memory_client import Client

log = logging.getLogger(__name__)


class Placed:
    """The copy on `device` (as this process calls it). Made by `Pending`; `client` and `of` are set by its client."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.identity = ""
        self.waits = ""
        self.begin = 0
        """Where in the image the copy begins."""
        self.client: Client | None = None
        self.of = 0
        """The client's number of what it is a copy of."""
        self._window: Window | None = None
        self._error = ""
        self._copied = False
        self._known = threading.Event()
        self._busy = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> Window | None:
        """The window once the copy is there; `None` where none can be shared, which is logged. Blocks.

        Raises EngineStartError when neither is known after `timeout_s` seconds.
        """
        if not self._known.wait(timeout_s):
            words = f"the copy on {self.device} was not there after {timeout_s:g} s"
            raise EngineStartError(f"{words}: {self.waits}" if self.waits else words)
        return None if self._error else self._window

    @property
    def error(self) -> str:
        """Why there is none that is shared; empty before that is known."""
        return self._error

    # --- what its client tells

    def open(self, begin: int, end: int) -> None:
        """It will be of these bytes of the image. Raises DeviceError. May make the device's context."""
        self.begin = begin
        self.identity = self.identity or identity(self.device)
        if self._window is None:
            self._window = open_window(self.device, end - begin)

    def show(self, fd: int, copied: bool) -> None:
        """The copy is there; it was `copied` for us. Raises DeviceError where it cannot be mapped."""
        assert self._window is not None
        self._window.map(fd)
        self._copied = copied
        self._error = self.waits = ""
        self._known.set()

    def fail(self, reason: str) -> None:
        """There will be none."""
        self._error = reason
        self._known.set()

    # --- while it is idle

    @property
    def rests(self) -> bool:
        """Whether it can be given back for a while: it is there and shared."""
        return self._known.is_set() and not self._error and self._window is not None and self.client is not None

    def rest(self) -> bool:
        """Give it back, once the device is done with it: nobody may look at it until `wake`. Blocks. Whether it was."""
        with self._busy:
            if not self.rests:
                return False
            assert self._window is not None
            assert self.client is not None
            self._known.clear()
            self._window.unmap()
            self.client.withdraw(self)
            return True

    def wake(self, timeout_s: float | None = None) -> bool | None:
        """Have it again, at the same address. Whether it had to be copied anew; `None` if it is not there in time.

        Blocks for as long as there is no room for it, at most `timeout_s` seconds: then it is wanted no more.
        Raises EngineStartError where it cannot be had any more.
        """
        with self._busy:
            assert self.client is not None
            self.client.place(self)
            if not self._known.wait(timeout_s):
                if self.client.withdraw(self):
                    return None
                self._known.wait()  # the answer has just come
            if self._error:
                raise EngineStartError(f"the weights on {self.device} cannot be had again: {self._error}")
            return self._copied
