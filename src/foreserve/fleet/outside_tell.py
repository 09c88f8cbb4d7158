"""Tells somebody else how many servers a service wants: a program that is run, or an address that is posted to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import aiohttp
import msgspec

from foreserve.errors import ForeserveError
from foreserve.network import fault

log = logging.getLogger(__name__)

COMMAND_S: Final = 60.0
"""How long a command may take; then it is ended, with all that it has started."""

WEBHOOK_S: Final = 10.0
"""How long one answer may take."""

TRIES: Final = 3
PAUSE_S: Final = 1.0
"""Before the second try; twice as long before each further one."""

MOST_BYTES: Final = 64 * 2**10
"""Of what is said in return."""

_LAST_WORDS_S: Final = 0.5
_SECRETS: Final = ("FORESERVE_API_KEY", "FORESERVE_ADMIN_KEY")


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """How many servers a service wants. It tells how things should be, so it may be heard twice.

    `id` is the same when it is told again. `current` is how many serve now; `used` are the addresses that must stay,
    `unused` those that held a server, hold nothing of ours and may be stopped.
    """

    id: str
    service: str
    wanted: int
    current: int
    why: str
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class Untold(ForeserveError):
    """Nobody heard, or who did refused."""


class Teller(Protocol):
    """Passes a wish on."""

    async def tell(self, wish: Wish) -> list[str]:
        """Returns addresses of servers that are to join, where it was told any. Raises Untold."""
        ...


class Command:
    """Runs a program for each wish, no shell between.

    `{service}`, `{wanted}` and `{current}` in its arguments stand for those; its environment has all of the wish as
    `FORESERVE_SERVICE`, `_WANTED`, `_CURRENT`, `_WHY`, `_USED`, `_UNUSED` (blanks between addresses) and `_WISH`. A
    line of its output that is an address is a server that joins; all of it is in the log.
    """

    def __init__(self, argv: Sequence[str], limit_s: float = COMMAND_S) -> None:
        self._argv = list(argv)
        self._limit_s = limit_s

    async def tell(self, wish: Wish) -> list[str]:
        """See `Teller`. Any exit status but 0 is a refusal."""
        words = {"{service}": wish.service, "{wanted}": str(wish.wanted), "{current}": str(wish.current)}
        argv = [_filled(argument, words) for argument in self._argv]
        # A pipe of our own: a server that the command leaves running may hold its other end open for ever.
        ours, theirs = os.pipe()
        content = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(content), os.fdopen(ours, "rb", buffering=0)
        )
        said = bytearray()
        reading = loop.create_task(_all(content, said))
        try:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=theirs,
                    env=self._environment(wish),
                    start_new_session=True,
                )
            except OSError as error:
                raise Untold(f"{argv[0]} cannot be run: {error}") from None
            finally:
                os.close(theirs)
            await self._ended(process, argv[0])
            await asyncio.wait([reading], timeout=_LAST_WORDS_S)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            pipe.close()
        lines = bytes(said).decode(errors="replace").splitlines()
        for line in lines:
            log.info("%s: %s", argv[0], line)
        if process.returncode != 0:
            raise Untold(f"{argv[0]} ended with status {process.returncode}: {lines[-1] if lines else 'no words'}")
        return [line.strip() for line in lines if line.strip().startswith(("http://", "https://"))]

    async def _ended(self, process: asyncio.subprocess.Process, name: str) -> None:
        """It has ended, or is ended when its time is over. Raises Untold then."""
        try:
            async with asyncio.timeout(self._limit_s):
                await process.wait()
        except TimeoutError:
            raise Untold(f"{name} took longer than {self._limit_s:g} s and was ended") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    def _environment(self, wish: Wish) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if name not in _SECRETS},
            "FORESERVE_WISH": wish.id,
            "FORESERVE_SERVICE": wish.service,
            "FORESERVE_WANTED": str(wish.wanted),
            "FORESERVE_CURRENT": str(wish.current),
            "FORESERVE_WHY": wish.why,
            "FORESERVE_USED": " ".join(wish.used),
            "FORESERVE_UNUSED": " ".join(wish.unused),
        }


class Webhook:
    """Posts each wish as JSON, with its id as `Idempotency-Key`, up to `TRIES` times.

    `key_env` names the environment variable whose value is shown as a bearer token. The answer may be empty or
    `{"servers": [addresses that join]}`.
    """

    def __init__(self, url: str, key_env: str | None = None, limit_s: float = WEBHOOK_S) -> None:
        self._url = url
        self._key_env = key_env
        self._limit_s = limit_s

    async def tell(self, wish: Wish) -> list[str]:
        """See `Teller`. An answer below 300 is consent; other answers but 408, 429 and 5xx are not asked for twice."""
        headers = {"content-type": "application/json", "idempotency-key": wish.id}
        if self._key_env is not None:
            headers["authorization"] = f"Bearer {os.environ.get(self._key_env, '')}"
        timeout = aiohttp.ClientTimeout(total=self._limit_s)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            for tried in range(1, TRIES + 1):
                try:
                    async with session.post(
                        self._url, data=msgspec.json.encode(wish), headers=headers, allow_redirects=False
                    ) as reply:
                        said = bytearray()
                        await _all(reply.content, said)
                        if reply.status < 300:
                            return _servers(said)
                        reason = f"the webhook answers {reply.status}: {said[:200].decode(errors='replace')}"
                        if reply.status < 500 and reply.status not in (408, 429):
                            raise Untold(reason)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    reason = f"the webhook cannot be reached: {fault(error)}"
                if tried < TRIES:
                    await asyncio.sleep(PAUSE_S * 2.0 ** (tried - 1))
        raise Untold(reason)


def _filled(argument: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        argument = argument.replace(name, value)
    return argument


async def _all(content: asyncio.StreamReader | aiohttp.StreamReader, said: bytearray) -> None:
    """All of it is read, so that its writer is not held up; what exceeds the bound is dropped."""
    while more := await content.read(MOST_BYTES):
        said += more[: MOST_BYTES - len(said)]


def _servers(said: bytearray) -> list[str]:
    try:
        found = msgspec.json.decode(said) if said.strip() else {}
    except msgspec.DecodeError:
        return []
    servers = found.get("servers") if isinstance(found, dict) else None
    return [url for url in servers if isinstance(url, str)] if isinstance(servers, list) else []
