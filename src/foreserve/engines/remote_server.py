"""What a running OpenAI-compatible server says of itself: its models, whether it is well, how loaded it is."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import msgspec

from foreserve.core import EngineLoad
from foreserve.errors import ForeserveError

_METRIC = re.compile(
    rb"^(vllm:num_requests_running|vllm:num_requests_waiting|vllm:kv_cache_usage_perc|vllm:gpu_cache_usage_perc"
    rb"|sglang:num_running_reqs|sglang:num_queue_reqs|sglang:token_usage"
    rb"|llamacpp:requests_processing|llamacpp:requests_deferred|llamacpp:kv_cache_usage_ratio)"
    rb"(?:\{[^}\n]*\})? +([0-9.eE+-]+)",
    re.MULTILINE,
)
_MEANING = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"),
    "kv": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage",
           "llamacpp:kv_cache_usage_ratio"),
}  # fmt: skip
_MOST_BYTES = 4 * 2**20


class Unreachable(ForeserveError):
    """The server does not answer as it should. `gone` when that is certain: refused, reset, or it says so itself."""

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class Locked(ForeserveError):
    """The server wants an API key, or another one."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What a server offers. `make` is the server's kind where it says so (`vllm`, `sglang`, `llamacpp`)."""

    models: tuple[str, ...] = ()
    context_tokens: dict[str, int] = {}
    make: str | None = None


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

    async def load(self) -> EngineLoad | None:
        """Its load from `/metrics`; `None` when it has none to tell. Raises Unreachable."""
        if not self._metrics:
            return None
        status, body = await self._get("/metrics")
        load = load_from(body) if status == 200 else None
        # A server that is starting may answer 503 here once; one that lacks the page says so by 404 or 501.
        self._metrics = load is not None or status >= 502
        return load

    async def _get(self, path: str) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=self._limit_s)
        try:
            async with self._session.get(self.url + path, headers=self._headers, timeout=timeout) as answer:
                return answer.status, await read_bounded(answer.content, _MOST_BYTES)
        except TimeoutError:
            raise Unreachable(f"{self.url}{path} gives no answer within {self._limit_s:g} s", gone=False) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.url} cannot be reached: {error}", gone=True) from None


async def read_bounded(content: aiohttp.StreamReader, bound: int) -> bytes:
    """All of it, but no more than `bound` bytes."""
    data = bytearray()
    while len(data) < bound and (more := await content.readany()):
        data += more
    return bytes(data[:bound])


def load_from(page: bytes) -> EngineLoad | None:
    """The load in a Prometheus page of vLLM, SGLang or llama.cpp; counts of several engines are added up."""
    found: dict[str, list[float]] = {}
    for name, amount in _METRIC.findall(page):
        try:
            found.setdefault(name.decode(), []).append(float(amount))
        except ValueError:
            continue
    amounts = {
        meaning: values
        for meaning, names in _MEANING.items()
        for name in reversed(names)
        if (values := found.get(name)) is not None
    }
    if not amounts:
        return None
    return EngineLoad(
        running=int(sum(amounts["running"])) if "running" in amounts else None,
        waiting=int(sum(amounts["waiting"])) if "waiting" in amounts else None,
        kv_fraction=max(amounts["kv"]) if "kv" in amounts else None,
    )


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
