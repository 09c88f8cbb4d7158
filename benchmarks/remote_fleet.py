"""Two real llama.cpp servers behind `foreserve serve --upstream`, under load all the time, while things happen to them.

Phases: nothing; a rolling restart that is announced (each server leaves, is restarted, joins); one that is not (each is
killed and restarted); one server that takes requests and answers none, while its `/health` says 200; one whose process
is stopped (SIGSTOP). Before each server stands a gate that counts what reaches it and can hold completions. Streams run
where nothing that was begun may be lost; where a server is killed or stopped within an answer, whole answers do.

"Noticed" is when the gateway gives the server nothing more, "back" when it does again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from benchmarks.common import ROOT, Report, arguments, picture
from benchmarks.servers import Server, foreserve, free_port
from foreserve.models.catalog import locate

CLIENTS = 6
MAX_TOKENS = 24
PEER_PYTHON = sys.executable
"""The interpreter that has xllamacpp."""
LIMIT_S = 120.0
"""No request may take longer: what does is counted as hung."""


class Peer:
    """A llama.cpp server in a process of its own, which can be ended and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / f"llamacpp-{self.port}.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Until its health says 200."""
        command = [PEER_PYTHON, str(ROOT / "tests/peer/llamacpp_server.py"), str(locate("smollm2", "bench").path)]
        self._process = await asyncio.to_thread(
            subprocess.Popen,
            [*command, str(self.port)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        async with asyncio.timeout(90), aiohttp.ClientSession() as http:
            while True:
                try:
                    async with http.get(self.url + "/health") as reply:
                        if reply.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)

    async def kill(self) -> None:
        """At once, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
            if process.stdin is not None:
                process.stdin.close()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        self._log.close()


class Gate:
    """Passes everything to one server; while `holds`, completions wait here and everything else passes."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.passed = 0
        self.probes = 0
        self.open = asyncio.Event()
        self.open.set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Gate]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as self._http:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._pass)
            runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "POST":
            probe = b'"prompt": "1", "max_tokens": 1' in body
            self.probes, self.passed = self.probes + probe, self.passed + (not probe)
            await self.open.wait()
        try:
            async with self._http.request(
                request.method, self.peer.url + request.raw_path, data=body or None, headers=_kept(request.headers)
            ) as reply:
                answer = web.StreamResponse(status=reply.status, headers=_kept(reply.headers))
                await answer.prepare(request)
                async for part in reply.content.iter_any():
                    await answer.write(part)
                return answer
        except aiohttp.ClientError:
            # As the server itself would: the connection breaks.
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)


def _kept(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in ("content-type", "authorization")}


class Sent(msgspec.Struct):
    """One request of ours: how it ended (`ok`, or what was wrong) and how long that took."""

    phase: str
    seconds: float
    ending: str


class Load:
    """Clients that each ask again as soon as they have their answer, with a prompt of its own each time."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model
        self._n = 0
        self._stop = False
        self.phase = ""
        self.streams = True
        self.sent: list[Sent] = []

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Until `stop`; what is open then is finished."""
        await asyncio.gather(*(self._client(http) for _ in range(CLIENTS)))

    def stop(self) -> None:
        self._stop = True

    async def _client(self, http: aiohttp.ClientSession) -> None:
        while not self._stop:
            self._n += 1
            phase, begun = self.phase, time.perf_counter()
            ending = await self._one(http, self._n, self.streams)
            self.sent.append(Sent(phase, time.perf_counter() - begun, ending))

    async def _one(self, http: aiohttp.ClientSession, n: int, streams: bool) -> str:
        question = f"Question {n}: what is {n} plus {n}? Answer in one sentence."
        body = {
            "model": self._model, "messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS,
            "temperature": 0, "stream": streams,
        }  # fmt: skip
        try:
            async with asyncio.timeout(LIMIT_S), http.post(self._url + "/v1/chat/completions", json=body) as reply:
                said = await reply.read()
        except TimeoutError:
            return "hung"
        except aiohttp.ClientError as error:
            return f"broken off: {type(error).__name__}"
        if reply.status != 200:
            return f"status {reply.status}: {said[:120].decode(errors='replace')}"
        if streams:
            return "ok" if said.count(b"data: [DONE]") == 1 and b'"error"' not in said else "stream cut"
        choices = json.loads(said).get("choices", [])
        return "ok" if len(choices) == 1 and choices[0]["finish_reason"] else "no answer"


class Front:
    """The gateway, asked about its servers."""

    def __init__(self, server: Server, http: aiohttp.ClientSession) -> None:
        self.url = server.url
        self._http = http

    async def json(self, path: str, method: str = "GET", **words: Any) -> Any:
        async with self._http.request(method, self.url + path, **words) as reply:
            said = await reply.read()
            if reply.status >= 400:
                raise RuntimeError(f"{method} {path}: {reply.status} {said.decode(errors='replace')}")
            return json.loads(said)

    async def state(self, gate: Gate) -> str:
        """How the server behind a gate stands; empty when it is none of ours."""
        services = (await self.json("/v1/foreserve/servers"))["services"]
        return next((one["state"] for servers in services.values() for one in servers if one["url"] == gate.url), "")

    async def until(self, gate: Gate, wanted: Callable[[str], bool], limit_s: float = 90.0) -> float:
        """Seconds until it stands as wanted."""
        begun = time.perf_counter()
        async with asyncio.timeout(limit_s):
            while not wanted(await self.state(gate)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return time.perf_counter() - begun


async def announced(front: Front, path: str, gates: list[Gate]) -> dict[str, float]:
    """Each server leaves, is restarted, and joins."""
    for gate in gates:
        await front.json(path, "DELETE", params={"url": gate.url})
        await front.until(gate, lambda state: state == "")
        await gate.peer.kill()
        await gate.peer.start()
        await front.json(path, "POST", json={"url": gate.url})
    return {}


async def unannounced(front: Front, gates: list[Gate]) -> dict[str, float]:
    """Each server is killed and comes back."""
    noticed, back = [], []
    for gate in gates:
        await gate.peer.kill()
        noticed.append(await front.until(gate, lambda state: state != "ready"))
        await gate.peer.start()
        back.append(await front.until(gate, lambda state: state == "ready"))
        await asyncio.sleep(2.0)
    return {"noticed_s": max(noticed), "back_s": max(back)}


async def hangs(front: Front, gate: Gate, hold: Callable[[], object], free: Callable[[], object]) -> dict[str, float]:
    """One server stops answering, and goes on a while after that was noticed."""
    hold()
    noticed = await front.until(gate, lambda state: state != "ready")
    await asyncio.sleep(3.0)
    free()
    return {"noticed_s": noticed, "back_s": await front.until(gate, lambda state: state == "ready")}


async def measure(server: Server, gates: list[Gate], pause_s: float, report: Report) -> None:
    """All phases, one after the other, under one load."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS + 8)) as http:
        front = Front(server, http)
        (service,) = (await front.json("/v1/foreserve/servers"))["services"]
        path = f"/v1/foreserve/services/{service}/servers"
        load = Load(server.url, service)
        first, second = gates
        phases: list[tuple[str, bool, Callable[[], Awaitable[dict[str, float]]]]] = [
            ("steady", True, lambda: _nothing(pause_s)),
            ("rolling_announced", True, lambda: announced(front, path, gates)),
            ("rolling_killed", False, lambda: unannounced(front, gates)),
            ("hung", True, lambda: hangs(front, second, second.open.clear, second.open.set)),
            ("stopped", False, lambda: hangs(front, first, *_stopping(first))),
        ]
        running = asyncio.create_task(load.run(http))
        for name, streams, phase in phases:
            load.phase, load.streams = "between", streams
            await asyncio.sleep(pause_s / 2)  # what was begun in the other way ends first
            load.phase = name
            for key, value in (await phase()).items():
                report.add(f"{name}_{key}", value)
            await asyncio.sleep(pause_s / 2)
        load.stop()
        await running
        await asyncio.sleep(1.0)
        told = await front.json("/v1/foreserve/status")
    _tell(report, load.sent, gates, told)


async def _nothing(seconds: float) -> dict[str, float]:
    await asyncio.sleep(seconds)
    return {}


def _stopping(gate: Gate) -> tuple[Callable[[], None], Callable[[], None]]:
    return lambda: gate.peer.signal(signal.SIGSTOP), lambda: gate.peer.signal(signal.SIGCONT)


def _tell(report: Report, sent: list[Sent], gates: list[Gate], told: dict[str, Any]) -> None:
    for name in dict.fromkeys(one.phase for one in sent):
        if name == "between":
            continue
        times = sorted(one.seconds for one in sent if one.phase == name)
        report.add(f"{name}_p50_s", times[len(times) // 2])
        report.add(f"{name}_p99_s", times[min(len(times) - 1, int(0.99 * len(times)))])
    lost = [one for one in sent if one.ending != "ok"]
    for one in lost[:10]:
        report.note(f"lost in {one.phase} after {one.seconds:.1f} s: {one.ending}")
    ended = sum(told["outcomes"]["requests"].values())
    report.add("requests", float(len(sent)))
    report.add("lost_requests", float(len(lost)), "0")
    report.add("unaccounted_requests", float(abs(ended - len(sent)) + told["open"]), "0")
    report.add("retries", float(sum(gate.passed for gate in gates) - len(sent)))
    report.add("probes", float(sum(gate.probes for gate in gates)))


@contextmanager
def _folder() -> Any:
    with tempfile.TemporaryDirectory(prefix="foreserve-bench-") as name:
        yield Path(name)


async def _all(pause_s: float, report: Report) -> None:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder())
        peers = [Peer(folder) for _ in range(2)]
        for peer in peers:
            stack.callback(peer.close)
            stack.push_async_callback(peer.kill)
        await asyncio.gather(*(peer.start() for peer in peers))
        gates = [await stack.enter_async_context(Gate(peer).serving()) for peer in peers]
        options = [word for gate in gates for word in ("--upstream", gate.url)]
        gateway = foreserve(*options, "--max-running", "4", env={"FORESERVE_STATE": str(folder / "state")})
        server = await asyncio.to_thread(gateway.__enter__)
        stack.callback(gateway.__exit__, None, None, None)
        for gate in gates:
            async with aiohttp.ClientSession() as http:
                await Front(server, http).until(gate, lambda state: state == "ready")
        await measure(server, gates, pause_s, report)


def run(quick: bool = False) -> dict[str, Any]:
    """Measures; the report as plain values."""
    return _run(quick).as_dict()


def _run(quick: bool) -> Report:
    pause_s = 4.0 if quick else 20.0
    report = Report(
        "remote_fleet",
        {"clients": CLIENTS, "max_tokens": MAX_TOKENS, "model": "SmolLM2-135M-Instruct Q4_1", "pause_s": pause_s},
    )
    asyncio.run(_all(pause_s, report))
    return report


def main() -> None:
    """Run it."""
    args = arguments(__doc__)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    report = _run(args.quick)
    phases = ("steady", "rolling_announced", "rolling_killed", "hung", "stopped")
    with picture("remote_fleet", "Two llama.cpp servers under load, and what befalls them", 1) as axes:
        for offset, key in ((-0.2, "p50_s"), (0.2, "p99_s")):
            heights = [report.figures[f"{phase}_{key}"] for phase in phases]
            drawn = axes[0].bar([n + offset for n in range(len(phases))], heights, 0.4, label=key.removesuffix("_s"))
            axes[0].bar_label(drawn, fmt="%.2g", padding=2)
        axes[0].set_xticks(range(len(phases)), [phase.replace("_", "\n") for phase in phases])
        axes[0].set_ylabel("seconds from a request to its whole answer")
        axes[0].legend()
    report.finish(args.json)


if __name__ == "__main__":
    main()
