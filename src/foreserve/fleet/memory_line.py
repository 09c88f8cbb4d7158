"""The gateway's own line to the memory owner: for weights that a worker will want, and for what there is to see."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from foreserve.core import WeightsRef
from foreserve.runtime.memory_messages import (
    Acquire,
    Ask,
    Release,
    Told,
    Waits,
    client_socket,
    decode_to_client,
    receive,
    send,
)  # fmt: skip

log = logging.getLogger(__name__)

HOLD_S: Final = 600.0
"""How long weights are held for a worker that says nothing."""

ANSWER_S: Final = 2.0
"""How long the owner may take to tell what it holds."""


class OwnerLine:
    """Connects when it is first used and after the owner has died. Never raises: what cannot be said is logged."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Told]] = {}
        self._waits: dict[int, str] = {}
        """Of what is held, what there was no room for, and the words that told of it."""

    def hold(self, path: Path, refs: Sequence[WeightsRef], python: str) -> Hold:
        """Have these loaded, and keep them. Why they cannot be had is for those who want them to hear."""
        numbers = [next(self._numbers) for _ in refs] if refs and self._connect(path) else []
        for number, ref in zip(numbers, refs, strict=False):
            self.tell(Acquire(number, ref, python, quiet=True))
        return Hold(self, numbers)

    async def ask(self, path: Path) -> Told | None:
        """What is held; `None` when there is no answer."""
        return await self.asked(path)

    def asked(self, path: Path) -> Awaitable[Told | None]:
        """As `ask`, but the question is on its way when this returns: before whatever is said next."""
        number = next(self._numbers)
        answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        if self._connect(path):
            self._asked[number] = answer
            self.tell(Ask(number))
        else:
            answer.cancel()
        return self._answer(number, answer)

    async def _answer(self, number: int, answer: asyncio.Future[Told]) -> Told | None:
        if answer.cancelled():
            return None
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except (TimeoutError, ConnectionError):
            return None
        finally:
            self._asked.pop(number, None)

    def waits(self, numbers: Sequence[int]) -> str:
        """Which of these wait for room, in words; empty where none does."""
        return "; ".join(self._waits[number] for number in numbers if number in self._waits)

    def tell(self, message: Acquire | Release | Ask) -> None:
        """Say it, if there is somebody."""
        if isinstance(message, Release):
            self._waits.pop(message.number, None)
        if self._socket is not None:
            try:
                send(self._socket, message)
            except OSError as error:
                log.warning("the memory owner does not hear us: %s", error)
                self.close()

    def close(self) -> None:
        """Hang up: what was held is let go. It may be used again."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self._waits.clear()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ConnectionError())

    def _connect(self, path: Path) -> bool:
        if self._socket is None:
            sock = client_socket()
            sock.setblocking(False)
            try:
                sock.connect(str(path))
            except OSError as error:
                log.warning("the memory owner cannot be reached: %s", error)
                sock.close()
                return False
            self._socket = sock
            asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        return True

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data, fd = receive(self._socket)
        except BlockingIOError:
            return
        except OSError:
            data, fd = b"", None
        if fd is not None:
            os.close(fd)
        if not data:
            self.close()
            return
        with suppress(msgspec.DecodeError):
            message = decode_to_client(data)
            if isinstance(message, Waits):
                self._waits[message.number] = message.reason
                return
            self._waits.pop(message.number, None)
            if isinstance(message, Told) and (answer := self._asked.pop(message.number, None)) and not answer.done():
                answer.set_result(message)


class Hold:
    """Weights that are kept until `release`, or for `HOLD_S`, so that a worker finds them."""

    def __init__(self, line: OwnerLine, numbers: Sequence[int]) -> None:
        self._line = line
        self._numbers = numbers
        self._timer = asyncio.get_running_loop().call_later(HOLD_S, self.release)

    @property
    def waits(self) -> str:
        """What of it waits for room, in words; empty where nothing does."""
        return self._line.waits(self._numbers)

    def release(self) -> None:
        """The worker has its own lease, or is gone. Does nothing the second time."""
        self._timer.cancel()
        numbers, self._numbers = self._numbers, ()
        for number in numbers:
            self._line.tell(Release(number))
