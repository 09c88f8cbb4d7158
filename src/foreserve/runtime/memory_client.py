"""The worker's line to the memory owner, in a thread of its own: what was asked for survives the owner's death.

A worker that has mapped something needs no owner any more. When the line breaks, the thread connects again: it lets
the next owner adopt what is held here, and asks anew for what was not answered. The path stays the same and the
gateway listens there all the time, so connecting waits where no owner runs; it fails only when the gateway is gone.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Final

import msgspec

from foreserve.core import WeightsRef
from foreserve.errors import EngineStartError
from foreserve.runtime.leases import Mapped, Pending, resolved
from foreserve.runtime.memory_messages import (
    Acquire,
    Adopt,
    AdoptCopy,
    Given,
    Place,
    Refused,
    Release,
    ToClient,
    Waits,
    client_socket,
    decode_to_client,
    receive,
    send,
)  # fmt: skip
from foreserve.runtime.placed import Placed

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.2
TRIES: Final = 25
"""Lines in a row, with `AGAIN_S` between, that cannot be had or end unanswered before what is wanted is got without an
owner: it may be what is asked for that brings each of them down."""


class Client:
    """Gets weights from the owner at `path`; `alone(pendings)` gets them where there is none any more."""

    def __init__(self, path: str, alone: Callable[[Sequence[Pending]], None]) -> None:
        self.path = path
        self._alone = alone
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._asked: dict[int, Pending] = {}
        self._held: dict[int, tuple[WeightsRef, Given, int]] = {}
        """What this process has mapped: the descriptor stays open, to show it to the next owner."""
        self._placing: dict[int, Placed] = {}
        self._copies: dict[int, tuple[Placed, Given, int]] = {}
        """The same of copies on devices, with the descriptor of what is mapped."""
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def want(self, pendings: Sequence[Pending]) -> None:
        """Ask for these. Returns at once."""
        with self._lock:
            for pending in pendings:
                number = next(self._numbers)
                self._asked[number] = pending
                if self._socket is not None:
                    with suppress(OSError):  # the thread finds the line broken, and asks again on the next
                        send(self._socket, Acquire(number, resolved(pending.ref), sys.executable))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="foreserve-leases", daemon=True)
                self._thread.start()

    def place(self, placed: Placed) -> None:
        """Ask for the copy of what this process holds in the host's memory. Returns at once."""
        with self._lock:
            number = next(self._numbers)
            if self._thread is None:
                placed.fail(f"there is no memory owner at {self.path} any more")
                return
            self._placing[number] = placed
            self._tell(Place(number, placed.of, placed.identity))

    def withdraw(self, placed: Placed) -> bool:
        """It is not mapped, or not wanted, any more. Returns at once. Whether it had been asked for in vain so far."""
        with self._lock:
            asked = [number for number, each in self._placing.items() if each is placed]
            for number in asked:
                del self._placing[number]
                self._tell(Release(number))
            for number, (each, _, fd) in list(self._copies.items()):
                if each is placed:
                    del self._copies[number]
                    os.close(fd)
                    self._tell(Release(number))
            return bool(asked)

    def _tell(self, message: Place | Release) -> None:
        if self._socket is not None:
            with suppress(OSError):  # see `want`; a lease ends with its line
                send(self._socket, message)

    def _run(self) -> None:
        failures = 0
        while failures < TRIES:
            failures += 1
            try:
                self._connect()
                while self._hear():
                    failures = 0
            except OSError as error:
                log.debug("the memory owner cannot be reached: %s", error)
            self._hang_up()
            threading.Event().wait(AGAIN_S)
        log.warning("there is no memory owner at %s any more; weights are got without one", self.path)
        with self._lock:
            left, self._asked, self._thread = list(self._asked.values()), {}, None
            unplaced, self._placing = list(self._placing.values()), {}
        for placed in unplaced:
            placed.fail(f"there is no memory owner at {self.path} any more")
        self._alone(left)

    def _connect(self) -> None:
        sock = client_socket()
        try:
            sock.connect(self.path)
            with self._lock:
                for number, (ref, given, fd) in self._held.items():
                    adopt = Adopt(number, ref, sys.executable, given.key, given.restore_s, given.sha256)
                    send(sock, adopt, [fd])
                for number, pending in self._asked.items():
                    send(sock, Acquire(number, resolved(pending.ref), sys.executable))
                for number, (placed, copy, fd) in self._copies.items():
                    send(sock, AdoptCopy(number, placed.of, placed.identity, copy.size, copy.restore_s), [fd])
                for number, placed in self._placing.items():
                    send(sock, Place(number, placed.of, placed.identity))
                self._socket = sock
        except BaseException:
            sock.close()
            raise

    def _hang_up(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None

    def _hear(self) -> bool:
        """Take one answer. False at the end of the line."""
        assert self._socket is not None
        data, fd = receive(self._socket)
        if not data:
            return False
        try:
            self._take(decode_to_client(data), fd)
        except msgspec.DecodeError as error:
            log.error("the memory owner said something that this version does not know: %s", error)
        return True

    def _take(self, message: ToClient, fd: int | None) -> None:
        if isinstance(message, Waits):
            with self._lock:
                waiting = self._asked.get(message.number) or self._placing.get(message.number)
                if waiting is not None:
                    waiting.waits = message.reason
            return
        with self._lock:
            pending = self._asked.pop(message.number, None)
            placed = self._placing.pop(message.number, None)
        if isinstance(message, Given) and fd is not None and pending is not None:
            self._given(pending, message, fd)
        elif isinstance(message, Given) and fd is not None and placed is not None:
            self._shown(placed, message, fd)
        elif isinstance(message, Refused) and pending is not None:
            pending.fail(message.reason)
        elif isinstance(message, Refused) and placed is not None:
            placed.fail(message.reason)
        elif fd is not None:
            os.close(fd)

    def _given(self, pending: Pending, message: Given, fd: int) -> None:
        try:
            mapped = Mapped(pending.ref.name, fd, pending.ref.source, message.sha256)
        except EngineStartError as error:
            os.close(fd)
            pending.fail(str(error))
            return
        with self._lock:
            self._held[message.number] = (resolved(pending.ref), message, fd)
        pending.give(mapped)
        if (placed := pending.placed) is not None:
            try:
                placed.open(mapped.data_begin, mapped.nbytes)
            except EngineStartError as error:
                placed.fail(str(error))
                return
            placed.client, placed.of = self, message.number
            self.place(placed)

    def _shown(self, placed: Placed, message: Given, fd: int) -> None:
        with self._lock:  # before it is known to be there: it may be given back at once
            self._copies[message.number] = (placed, message, fd)
        try:
            placed.show(fd, message.copied)
        except EngineStartError as error:
            self.withdraw(placed)
            placed.fail(str(error))
