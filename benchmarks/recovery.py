"""`kill -9` of the worker under load: how soon it is noticed, how soon the service is back, whether anything is lost.

Clients keep the only replica busy; its process is killed in the middle. "Noticed" is when the server no longer counts
it among its replicas' processes, "back" when a new one is ready, the model's loading included.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from benchmarks.common import Report, arguments, bars, picture
from benchmarks.data import samples
from benchmarks.load import send
from benchmarks.servers import Server, foreserve
from foreserve.loadgen.arrivals import ClosedLoop
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.run import Limits
from foreserve.loadgen.stats import summarise

CLIENTS = 8
APP = """
import foreserve as fs
app = fs.App(chat=fs.LLM("smollm2", engine="openvino"), state={"history": False})
"""


async def status(http: aiohttp.ClientSession) -> dict[str, Any]:
    """What the server says of itself."""
    async with http.get("/v1/foreserve/status") as reply:
        answer: dict[str, Any] = json.loads(await reply.read())
    return answer


async def until(http: aiohttp.ClientSession, pid: int, *, ready: bool) -> float:
    """When the replica of process `pid` is gone, or another one is ready."""
    while True:
        replica = (await status(http))["services"][0]["replicas"][0]
        if replica["pid"] != pid and (not ready or replica["state"] == "ready"):
            return time.perf_counter()
        await asyncio.sleep(0.005)


async def one(server: Server, prompts: list[Prompt], report: Report) -> tuple[float, float, int]:
    """One death: seconds to notice, seconds until ready again, requests lost."""
    options = ClientOptions(url=server.url, model="chat", endpoint="completions", max_tokens=48)
    async with aiohttp.ClientSession(server.url) as http:
        pid = (await status(http))["services"][0]["replicas"][0]["pid"]
        load = asyncio.create_task(send(options, prompts, ClosedLoop(CLIENTS), Limits(requests=CLIENTS * 6)))
        await asyncio.sleep(3.0)
        killed = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        noticed = await until(http, pid, ready=False)
        back = await until(http, pid, ready=True)
        run = await load
        await asyncio.sleep(0.5)
        told = await status(http)
    endings = summarise(run.results).endings
    report.note(f"{len(run.results)} requests: {endings}; the server's ledger: {told['outcomes']['requests']}")
    hung = sum(1 for result in run.results if result.ending in ("timeout", "abandoned"))
    return noticed - killed, back - killed, told["open"] + run.unsent + hung


def main() -> None:
    """Run it."""
    args = arguments(__doc__)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    deaths = 1 if args.quick else 5
    report = Report("recovery", {"clients": CLIENTS, "deaths": deaths, "model": "SmolLM2-135M-Instruct f16"})
    prompts = [sample.as_prompt() for sample in samples("sharegpt", 100, report, max_chars=400)]
    found: list[tuple[float, float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "app.py"
        app.write_text(APP)
        for _ in range(deaths):
            # A server of its own for each: a second death in a row is restarted with a pause.
            with foreserve(str(app)) as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                found.append(runner.run(one(server, prompts, report)))
    report.add("noticed_s", [noticed for noticed, _, _ in found], "below 0.2")
    report.add("back_s", [back for _, back, _ in found], "below 5")
    report.add("lost_requests", float(sum(lost for _, _, lost in found)), "0")
    with picture("recovery", "kill -9 of the only worker under load") as axes:
        bars(axes[0], {"noticed": [n for n, _, _ in found], "back": [b for _, b, _ in found]}, "seconds")
    report.finish(args.json)


if __name__ == "__main__":
    main()
