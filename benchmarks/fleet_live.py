"""Worker processes that come and go under load: a service scales from 1 to 4 and back while requests run over HTTP.

The load rises and falls in a ramp. Workers are real processes, started and ended live; each runs the simulated engine,
which waits for as long as a model's steps take, because four real ones would share the processor here and add nothing
to each other (`--real` runs SmolLM2 in them all the same, one thread each, at a rate that two cores can bear). Scaling
goes by the app's own policy, or, with `--by-hand`, by the ramp itself.

A request is lost when it does not end as done, whatever the reason: refused, failed, or cut off.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import uvicorn
import uvloop

from benchmarks.common import Report, arguments, picture
from benchmarks.load import send
from foreserve.app import App
from foreserve.fleet.replica import State
from foreserve.gateway.http import create_app
from foreserve.loadgen.arrivals import Arrival, generator
from foreserve.loadgen.client import ClientOptions
from foreserve.loadgen.prompts import Prompt
from foreserve.loadgen.records import Ending
from foreserve.loadgen.run import Limits, Run
from foreserve.loadgen.stats import e2e, summarise
from foreserve.running import Running
from foreserve.services.llm import LLM

MOST: Final = 4
SLOTS: Final = 8
STEP_S: Final = 0.05
TOKENS: Final = (20, 60)
START_S: Final = 2.0
"""Of the simulated engine, beside the time of its process: a small model's weights from a warm disk."""

LOOK_S: Final = 0.25
SCALING: Final[dict[str, Any]] = {"every_s": 1.0, "window_s": 5.0, "drain_s": 60.0}


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The ramp: `low` requests a second, up to `high` in the middle of `seconds`, and back; one replica does `each`."""

    seconds: float
    low: float
    high: float
    each: float

    def rate(self, at: float) -> float:
        """Requests a second at this second: a fifth of the time low, then up, a fifth high, down, a fifth low."""
        share = min(max(at / self.seconds, 0.0), 1.0)
        rise = min(max((0.5 - abs(share - 0.5) - 0.2) / 0.2, 0.0), 1.0)
        return self.low + (self.high - self.low) * rise

    def arrivals(self, seed: int) -> Iterator[Arrival]:
        """A Poisson process of that rate, thinned from one of the highest."""
        rng, at = generator(seed), 0.0
        while True:
            at += rng.exponential(1.0 / self.high)
            if at > self.seconds:
                return
            if rng.random() < self.rate(at) / self.high:
                yield Arrival(at)

    def replicas(self, at: float) -> int:
        """How many that needs at a load of 0.8."""
        return min(max(math.ceil(self.rate(at) / (0.8 * self.each)), 1), MOST)


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet `at` so many seconds after the first request was due."""

    at: float
    states: dict[str, int]
    wanted: int
    waiting: int
    running: int
    processes: int


SIMULATED: Final = SLOTS / (STEP_S * (sum(TOKENS) / 2))
"""Requests a second that one simulated replica can do."""


def simulated() -> LLM:
    """The service of the figures."""
    return LLM(
        "simulated",
        replicas=[1, MOST],
        max_running=SLOTS,
        engine_options={"decode_s": STEP_S, "output_tokens": list(TOKENS), "start_s": START_S},
        scaling=SCALING,
        foresight={"predictor": "histogram"},
    )


def real() -> LLM:
    """SmolLM2 in each worker."""
    return LLM("smollm2", engine="openvino", replicas=[1, MOST], threads=1, max_running=4, scaling=SCALING)


@asynccontextmanager
async def served(kind: LLM) -> AsyncIterator[tuple[str, Running]]:
    """The service behind a real server on loopback, in this process; its workers are processes of their own."""
    running = App(chat=kind, state={"history": False}).run()
    await running.start()
    config = uvicorn.Config(create_app(running), port=0, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", running
    finally:
        server.should_exit = True
        await task
        await running.stop(10.0)
    running.ledger.check(idle=True)


async def watch(running: Running, looks: list[Look], pids: set[int]) -> None:
    """Look at the fleet all the time."""
    service, loop = running.services["chat"], asyncio.get_running_loop()
    began = loop.time()
    while True:
        states = [replica.state.value for replica in service.replicas.all if replica.state is not State.GONE]
        alive = {replica.pid for replica in service.replicas.all if replica.pid is not None}
        pids |= alive
        looks.append(
            Look(
                at=loop.time() - began,
                states={state: states.count(state) for state in sorted(set(states))},
                wanted=service.replicas.wanted,
                waiting=len(service.dispatcher.waiting),
                running=len(service.dispatcher.running),
                processes=len(alive),
            )
        )
        await asyncio.sleep(LOOK_S)


async def steer(running: Running, shape: Shape) -> None:
    """Scale by the ramp itself, as somebody would who knows it."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        running.services["chat"].replicas.scale(shape.replicas(loop.time() - began))
        await asyncio.sleep(1.0)


async def one(kind: LLM, shape: Shape, seed: int, *, by_hand: bool) -> tuple[Run, list[Look], set[int]]:
    """One ramp."""
    prompts = [Prompt(prompt=f"Tell of the number {number}.", max_tokens=max(TOKENS)) for number in range(50)]
    looks: list[Look] = []
    pids: set[int] = set()
    async with served(kind) as (url, running):
        beside = [asyncio.create_task(watch(running, looks, pids))]
        if by_hand:
            beside.append(asyncio.create_task(steer(running, shape)))
        options = ClientOptions(url=url, model="chat", retries=0, timeout_s=120.0)
        try:
            run = await send(options, prompts, shape.arrivals(seed), Limits(requests=100_000), seed=seed)
            until = asyncio.get_running_loop().time() + shape.seconds / 4
            while len(looks[-1].states) > 1 or looks[-1].states.get("ready") != 1:  # back to where it began
                if asyncio.get_running_loop().time() > until:
                    break
                await asyncio.sleep(LOOK_S)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
        for task in beside:
            if not task.cancelled():
                task.result()
    return run, looks, pids


def run_live(*, seconds: float = 180.0, of_real: bool = False, by_hand: bool = False, seed: int = 0) -> dict[str, Any]:
    """One ramp and what came of it: `figures` by name, and `series`, the fleet over time.

    `lost` counts every request that did not end as done. Raises LedgerError where one has no outcome.
    """
    if of_real:
        shape = Shape(seconds=seconds, low=0.5, high=3.0, each=0.9)
        kind = real()
    else:
        shape = Shape(seconds=seconds, low=0.3 * SIMULATED, high=3.0 * SIMULATED, each=SIMULATED)
        kind = simulated()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        run, looks, pids = runner.run(one(kind, shape, seed, by_hand=by_hand))
    told = summarise(run.results)
    lost = sum(result.ending is not Ending.DONE for result in run.results) + run.unsent
    spans = [(b.at - a.at, sum(a.states.values())) for a, b in itertools.pairwise(looks)]
    hours = sum(span * count for span, count in spans) / 3600
    whole = sum(span for span, _ in spans)
    figures = {
        "requests": float(len(run.results)),
        "lost": float(lost),
        "p50_s": _of(told.e2e, "p50"),
        "p99_s": _of(told.e2e, "p99"),
        "ttft_p99_s": _of(told.ttft, "p99"),
        "most_replicas": float(max(look.states.get("ready", 0) for look in looks)),
        "last_replicas": float(looks[-1].states.get("ready", 0)),
        "most_processes": float(max(look.processes for look in looks)),
        "processes_started": float(len(pids)),
        "processes_left": float(sum(_alive(pid) for pid in pids)),
        "replica_hours": hours,
        "replica_hours_vs_static": hours / (MOST * whole / 3600) if whole else 1.0,
    }
    ends = [(result.due, e2e(result)) for result in run.results if result.ending is Ending.DONE]
    return {
        "engine": "openvino, SmolLM2, one thread each" if of_real else "simulated steps in worker processes",
        "scaled_by": "hand" if by_hand else "policy",
        "figures": figures,
        "endings": told.endings,
        "series": [msgspec.to_builtins(look) for look in looks],
        "rate": [(look.at, shape.rate(look.at)) for look in looks],
        "latencies": ends,
    }


def _of(distribution: object, name: str) -> float:
    return float(getattr(distribution, name)) if distribution is not None else math.nan


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def draw(found: Sequence[dict[str, Any]]) -> None:
    """Replicas, load and latencies over time."""
    with picture("fleet_live", "Worker processes under a ramp, live", columns=2) as axes:
        result = found[0]
        at = [look["at"] for look in result["series"]]
        ready = [look["states"].get("ready", 0) for look in result["series"]]
        there = [sum(look["states"].values()) for look in result["series"]]
        axes[0].step(at, there, where="post", color="0.7", label="processes")
        axes[0].step(at, ready, where="post", label="take work")
        load = axes[0].twinx()
        load.plot([x for x, _ in result["rate"]], [y for _, y in result["rate"]], color="tab:red", alpha=0.5)
        load.set_ylabel("requests a second (red)")
        load.set_ylim(bottom=0)
        axes[0].set_ylabel("replicas")
        axes[0].set_xlabel("seconds")
        axes[0].legend(loc="upper left")
        axes[1].plot(*zip(*result["latencies"], strict=True), ".", markersize=2)
        axes[1].set_ylabel("seconds from due to done")
        axes[1].set_xlabel("due, seconds")
        axes[1].set_ylim(bottom=0)


def main() -> None:
    """Run it."""
    args = arguments(
        __doc__,
        more=lambda parser: (
            parser.add_argument("--real", action="store_true", help="SmolLM2 in the workers"),
            parser.add_argument("--by-hand", action="store_true", help="scale by the ramp, not by the policy"),
        ),
    )
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    seconds = 45.0 if args.quick else 180.0
    began = time.perf_counter()
    found = [run_live(seconds=seconds, of_real=args.real, by_hand=args.by_hand)]
    report = Report("fleet_live", {"seconds": seconds, "replicas": [1, MOST], "engine": found[0]["engine"]})
    goals = {"lost": "0", "most_replicas": "4", "last_replicas": "1", "processes_left": "0"}
    for key in found[0]["figures"]:
        report.add(key, [result["figures"][key] for result in found], goals.get(key, ""))
    report.note(
        f"scaled by {found[0]['scaled_by']}; endings {found[0]['endings']}; {time.perf_counter() - began:.0f} s"
    )
    draw(found)
    report.finish(args.json)


if __name__ == "__main__":
    main()
