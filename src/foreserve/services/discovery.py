"""From the addresses of running servers to services: which models they serve, and who serves the same one."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

import aiohttp

from foreserve.engines.remote_server import Locked, RemoteServer, Served, Unreachable, base_url
from foreserve.errors import ConfigError
from foreserve.services.upstream import Upstream

log = logging.getLogger(__name__)


class Discovery:
    """The services of `foreserve serve --upstream URL ...`, by model; who lists it is its replica.

    A server that does not answer at first counts as a replica of every model: it joins those that it serves when it is
    back. What it has alone is found by `more`. `words` are further `UpstreamSettings`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        observe: bool = False,
        api_key_env: str | None = None,
        connect_s: float = 5.0,
        **words: Any,
    ) -> None:
        self._addresses = list(dict.fromkeys(base_url(url) for url in urls))
        for url in self._addresses:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"--upstream: {url!r} is not an http:// or https:// address")
        self._api_key_env = api_key_env
        self._connect_s = connect_s
        self._words = {"observe": observe, "api_key_env": api_key_env, "connect_s": connect_s, **words}
        self._names: dict[str | None, str] = {}
        self.silent: list[str] = []
        """Those that have not answered yet."""

    async def services(self) -> dict[str, Upstream]:
        """Those of all servers that answer now. Raises ConfigError when none does, or one wants another key."""
        answers = await _ask(self._addresses, self._api_key_env, self._connect_s)
        self.silent = [url for url in self._addresses if isinstance(answers[url], Unreachable)]
        if len(self.silent) == len(self._addresses):
            raise ConfigError("no upstream server answers: " + "; ".join(str(answers[url]) for url in self.silent))
        for url in self.silent:
            log.warning("%s; it will be used when it answers", answers[url])
        return self._made(answers)

    async def more(self) -> dict[str, Upstream]:
        """Those that none of the servers had which answered before. Raises ConfigError as `services` does."""
        answers = await _ask(self.silent, self._api_key_env, self._connect_s)
        self.silent = [url for url in self.silent if isinstance(answers[url], Unreachable)]
        return self._made(answers)

    def _made(self, answers: dict[str, Served | Unreachable]) -> dict[str, Upstream]:
        hosts: dict[str | None, list[str]] = {}
        for url in self._addresses:
            served = answers.get(url)
            if isinstance(served, Served):
                for model in served.models or (None,):
                    if model not in self._names:
                        hosts.setdefault(model, []).append(url)
        services: dict[str, Upstream] = {}
        for model, at in hosts.items():
            name = self._names[model] = _name(model, self._names.values())
            urls = [url for url in self._addresses if url in at or url in self.silent]
            services[name] = Upstream(urls, model=model, **self._words)
        return services


async def _ask(urls: Sequence[str], api_key_env: str | None, connect_s: float) -> dict[str, Served | Unreachable]:
    headers = {}
    if api_key_env is not None:
        if not os.environ.get(api_key_env):
            raise ConfigError(f"the environment variable {api_key_env} (`api_key_env`) is not set")
        headers = {"authorization": f"Bearer {os.environ[api_key_env]}"}
    async with aiohttp.ClientSession() as session:
        servers = [RemoteServer(url, session, headers, connect_s) for url in urls]
        found = await asyncio.gather(*(server.served() for server in servers), return_exceptions=True)
    answers: dict[str, Served | Unreachable] = {}
    for url, answer in zip(urls, found, strict=True):
        if isinstance(answer, Locked):
            raise ConfigError(str(answer))
        if isinstance(answer, BaseException) and not isinstance(answer, Unreachable):
            raise answer
        answers[url] = answer
    return answers


def _name(model: str | None, taken: Collection[str]) -> str:
    """A service's name: the model's own where it can be one. llama.cpp lists the path of its file: that file's name."""
    name = model or "upstream"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", name):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name.replace("\\", "/").rpartition("/")[2].removesuffix(".gguf"))
        name = name.strip("-._")[:100] or "upstream"
    free, count = name, 2
    while free in taken:
        free, count = f"{name}-{count}", count + 1
    return free
