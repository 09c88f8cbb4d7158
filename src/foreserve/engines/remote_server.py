"""What a running OpenAI-compatible server says of itself: its models, whether it is well, how loaded it is."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

from foreserve.engines.remote_metrics import Page, read
from foreserve.errors import ForeserveError
from foreserve.network import fault

_MOST_BYTES = 4 * 2**20


class Unreachable(ForeserveError):
    """The server does not answer as it should. `gone` when that is certain: refused, reset, or it says so itself."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class Loading(Unreachable):
    """The server is up and says that it takes no requests yet, which mends itself."""


class Locked(ForeserveError):
    """The server wants an API key, or another one."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a server offers. `make` is the server's kind where it says so (`vllm`, `sglang`, `llamacpp`)."""

    models: tuple[str, ...] = ()
    context_tokens: dict[str, int] = {}
    make: str | None = None


class _Slot(msgspec.Struct):
    n_ctx: int


class _Props(msgspec.Struct):
    total_slots: int
    default_generation_settings: _Slot


def base_url(url: str) -> str:
    """The server's root: users give it with or without `/v1`."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class RemoteServer:
    """Asks one server about itself. Every question is answered or refused within `limit_s` seconds."""

    def __init__(self, url: str, session: aiohttp.ClientSession, headers: dict[str, str], limit_s: float) -> None:
        self.url = base_url(url)
        self._session = session
        self._headers = headers
        self._limit_s = limit_s
        self._health = "/health"
        self._metrics = True

    async def served(self) -> Served:
        """Its models. Empty when it answers but lists none. Raises Unreachable, Locked."""
        await self.well()
        status, body = await self._get("/v1/models")
        if status in (401, 403):
            raise Locked(f"{self.url} answers {status} to GET /v1/models: it wants an API key; name the environment "
                         "variable that holds it in `api_key_env`")  # fmt: skip
        return _served(body) if status == 200 else Served()

    async def well(self) -> None:
        """Returns when the server is fit to take requests. Raises Unreachable."""
        status, _ = await self._get(self._health)
        if status in (404, 405) and self._health == "/health":
            self._health = "/v1/models"
            status, _ = await self._get(self._health)
        if status >= 500 and status != 501:
            raise Unreachable(f"{self.url}{self._health} answers {status}", gone=True)

    async def metrics(self) -> Page | None:
        """What `/metrics` tells; `None` when there is no such page, or nothing to read in it. Raises Unreachable."""
        if not self._metrics:
            return None
        status, body = await self._get("/metrics")
        page = read(body) if status == 200 else None
        # A server that is starting may answer 503 here once; one that lacks the page says so by 404 or 501.
        self._metrics = page is not None or status >= 502
        return page

    async def metrics_in_time(self) -> Page | None:
        """As `metrics`; `None` also where they are late: llama.cpp tells none while it reads a prompt."""
        try:
            return await self.metrics()
        except Unreachable as error:
            if error.gone:
                raise
            return None

    async def cache_tokens(self) -> float | None:
        """How many tokens llama.cpp's KV cache holds: its slots times the context of each. Raises Unreachable."""
        status, body = await self._get("/props")
        if status != 200:
            return None
        try:
            props = msgspec.json.decode(body, type=_Props)
        except msgspec.DecodeError:
            return None
        return float(props.total_slots * props.default_generation_settings.n_ctx) or None

    async def post(self, path: str, body: dict[str, Any]) -> int:
        """Sends `body` and reads the answer; its status. Waits for as long as it takes. Raises Unreachable."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limit_s)
        try:
            async with self._session.post(
                self.url + path, json=body, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as answer:
                await read_bounded(answer.content, _MOST_BYTES)
                return answer.status
        except TimeoutError:
            raise Unreachable(f"{self.url} takes no connection within {self._limit_s:g} s", gone=False) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.url} cannot be reached: {fault(error)}", gone=True) from None

    async def _get(self, path: str) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=self._limit_s)
        try:
            async with self._session.get(
                self.url + path, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as answer:
                return answer.status, await read_bounded(answer.content, _MOST_BYTES)
        except TimeoutError:
            raise Unreachable(f"{self.url}{path} gives no answer within {self._limit_s:g} s", gone=False) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.url} cannot be reached: {fault(error)}", gone=True) from None


async def read_bounded(content: aiohttp.StreamReader, bound: int) -> bytes:
    """All of it, but no more than `bound` bytes."""
    data = bytearray()
    while len(data) < bound and (more := await content.readany()):
        data += more
    return bytes(data[:bound])


def _served(body: bytes) -> Served:
    try:
        listed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return Served()
    found = listed.get("data") if isinstance(listed, dict) else listed
    found = found if isinstance(found, list) else []
    rows: list[dict[str, Any]] = [row for row in found if isinstance(row, dict) and isinstance(row.get("id"), str)]
    context = {row["id"]: tokens for row in rows if (tokens := _context(row)) is not None}
    make = next((row["owned_by"] for row in rows if row.get("owned_by") in ("vllm", "sglang", "llamacpp")), None)
    return Served(models=tuple(row["id"] for row in rows), context_tokens=context, make=make)


def _context(row: dict[str, Any]) -> int | None:
    """`max_model_len` of vLLM and SGLang; llama.cpp's `n_ctx`, which is what one request may use."""
    meta = row.get("meta")
    tokens = row.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return tokens if isinstance(tokens, int) and tokens > 0 else None
