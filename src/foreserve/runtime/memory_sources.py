"""Weights that are no file of this machine: fetched from an allowed address, or made by a user's loader.

Both are written once into memory that is then sealed: from there on nobody can change or shorten it.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from foreserve import clock
from foreserve.errors import EngineStartError
from foreserve.runtime import bootstrap
from foreserve.runtime.ends import kill_group

FETCH_S: Final = 1800.0
"""The longest that fetching may take in all; `READ_S` that a server may stay silent."""
READ_S: Final = 30.0

LOADER_S: Final = 900.0
"""The longest that a user's loader may take."""

LOOK_S: Final = 0.02
"""Between two looks at whether it has ended."""

LAST_WORDS_S: Final = 1.0
"""The longest that is read on after its end, where somebody else keeps the pipe open: what it said is there by then."""

MOST_BYTES: Final = 1 << 40
_STEP_BYTES: Final = 64 * 2**20
"""The first room that is asked for where a server does not tell how much there is; doubled from there on."""

Room = Callable[[int], Awaitable[None]]
"""Keeps room for so many bytes in all; raises EngineStartError where there is none."""

T = TypeVar("T")


def refusal(address: str, sources: Sequence[str]) -> str | None:
    """Why weights may not come from `address`; `None` when it begins with one of `sources` and does not leave it."""
    if not any(address.startswith(source) for source in sources):
        return f"weights may not come from {address}; allowed (runtime.sources): {', '.join(sources) or 'nothing'}"
    path = unquote(urlsplit(address).path)
    if ".." in path.replace("\\", "/").split("/") or any(ord(sign) <= 32 for sign in address) or "\\" in address:
        return f"weights may not come from {address!r}: it has '..', a backslash or a space in it"
    return None


async def fetch(address: str, sources: Sequence[str], fd: int, room: Room) -> str:
    """Write what is at `address` to `fd`. Returns its SHA-256 (hex). Raises EngineStartError, in words.

    Redirects are followed while they stay within `sources`.
    """
    if reason := refusal(address, sources):
        raise EngineStartError(reason)
    try:
        async with asyncio.timeout(FETCH_S):
            return await _fetch(address, sources, fd, room)
    except TimeoutError:
        raise EngineStartError(f"{address}: it took longer than {FETCH_S:g} s") from None


async def _fetch(address: str, sources: Sequence[str], fd: int, room: Room) -> str:
    response = await _told(address, lambda: _open(address, sources))
    try:
        length = response.headers.get("Content-Length")
        kept = min(int(length), MOST_BYTES + 1) if length is not None and length.isdecimal() else _STEP_BYTES
        await _keep(address, kept, room)
        sha, size = hashlib.sha256(), 0
        while block := await _told(address, lambda: response.read(2**20)):
            size += len(block)
            if size > kept:
                kept = max(size, 2 * kept)
                await _keep(address, kept, room)
            sha.update(block)
            await to_its_end(clock.offload(lambda block=block: _write(fd, block)))  # type: ignore[misc]
    finally:
        # In a thread, not waited for: one that still reads has to have heard, or missed, what it waits for.
        asyncio.get_running_loop().run_in_executor(None, response.close)
    if length is not None and str(size) != length:
        raise EngineStartError(f"{address}: the server ended after {size} of {length} bytes")
    return sha.hexdigest()


async def _keep(address: str, size: int, room: Room) -> None:
    if size > MOST_BYTES:
        raise EngineStartError(f"{address}: more than {MOST_BYTES} bytes")
    await room(size)


def _open(address: str, sources: Sequence[str]) -> Any:
    """The response. Imported late: most owners never fetch anything."""
    from urllib.request import HTTPRedirectHandler, build_opener

    class Within(HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if reason := refusal(newurl, sources):
                fp.close()
                raise EngineStartError(f"{address} leads elsewhere: {reason}")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return build_opener(Within()).open(address, timeout=READ_S)


async def _told(address: str, fn: Callable[[], T]) -> T:
    """`fn` off the loop, its errors in words."""
    from http.client import HTTPException
    from urllib.error import HTTPError

    try:
        return await clock.offload(fn)
    except HTTPError as error:
        error.close()
        raise EngineStartError(f"{address}: the server answered {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise EngineStartError(f"{address}: {getattr(error, 'reason', None) or error}") from None


async def run_loader(loader: str, python: str, fd: int, room: Room, limit_s: float = LOADER_S) -> None:
    """Run `loader` by `python` in a process of its own, which writes its image to `fd`.

    It is gone at the end, with all that it has started and left in its session.

    Raises EngineStartError with what the loader raised, or how its process ended.
    """
    command = [python, bootstrap.__file__, "memory_child", str(fd), loader]
    env = dict(os.environ)
    if python != sys.executable:  # what leads to our packages is not for another interpreter
        for name in bootstrap.OURS:
            env.pop(name, None)
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, env=env, pass_fds=(fd,), start_new_session=True
        )
    except OSError as error:
        raise EngineStartError(f"{loader}: the interpreter {python} cannot be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(limit_s):
            reason = await _until_end(process, room)
            code = process.returncode
    except TimeoutError:
        raise EngineStartError(f"{loader}: it took longer than {limit_s:g} s") from None
    finally:
        kill_group(process.pid)  # also of one that has ended: its number is not another's while it has left somebody
        await asyncio.shield(_ended(process))
        process._transport.close()  # type: ignore[attr-defined]  # the pipe of one who has left the session stays open
    if reason is not None:
        raise EngineStartError(reason)
    if code:
        raise EngineStartError(f"{loader}: its process ended with {code}, which the log may tell more of")


async def _until_end(process: asyncio.subprocess.Process, room: Room) -> str | None:
    """Converse until its process has ended, whoever else still has its pipe: what it has forked may live on."""
    talk = asyncio.ensure_future(_converse(process, room))
    end = asyncio.ensure_future(_ended(process))
    try:
        await asyncio.wait({talk, end}, return_when=asyncio.FIRST_COMPLETED)
        if talk.done():
            talk.result()  # it may have raised, and its process still waits for an answer then
            await end
        else:
            await asyncio.wait({talk}, timeout=LAST_WORDS_S)
        return talk.result() if talk.done() else None
    finally:
        for task in (talk, end):
            task.cancel()
        await asyncio.gather(talk, end, return_exceptions=True)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Not `Process.wait`, which in some versions of Python waits for the ends of all its pipes as well."""
    while process.returncode is None:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)


async def _converse(process: asyncio.subprocess.Process, room: Room) -> str | None:
    """Grant what it asks for. What went wrong, as far as it says so."""
    assert process.stdout is not None
    assert process.stdin is not None
    while line := await process.stdout.readline():
        message = json.loads(line)
        if "error" in message:
            return str(message["error"])
        await room(int(message["bytes"]))
        process.stdin.write(b"\n")
    return None


SEALS: Final[int] = (
    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if sys.platform == "linux" else 0
)


def memory() -> int:
    """A descriptor of new memory to write an image to."""
    if sys.platform == "linux":
        return os.memfd_create("foreserve-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def seal(fd: int) -> int:
    """Let nobody change its content or length any more. Returns a descriptor that is open for reading alone."""
    if sys.platform != "linux":
        return os.dup(fd)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def is_sealed(fd: int) -> bool:
    """Whether nobody can change what is there."""
    try:
        return sys.platform == "linux" and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False


async def to_its_end(work: Awaitable[T]) -> T:
    """What `work`, done by a thread, returns. Cancelled or not, this ends after it: no thread can be stopped, and the
    descriptor that it uses is closed next."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        while not doing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({doing})
        raise


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
