"""The graph service under load: how many changes a second, how soon they are visible, and what queries see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Report, console, picture
from benchmarks.graphs_model import Stream, loaded
from benchmarks.graphs_updates import CHANGES
from foreserve.core import Work
from foreserve.graphs.asked import Ask, Query, Update
from foreserve.graphs.engine import GraphEngine
from foreserve.graphs.schema import EDGE, NODE
from foreserve.graphs.store import GraphStore
from foreserve.tensors import tensor_of

HERE = Path(__file__).resolve().parent
CLIENTS = 128
QUERIES_PER_S = 200
DRAIN_S = 20.0
"""How long what was asked is waited for when a load has ended."""

WAYS = {"cut": (1, False), "infer-after-update": (2, True), "infer-on-stale": (2, False)}
"""Ours (the last layer is computed when asked), and both others from a full table: the layers that are kept up to date,
and whether a query waits for all that came before it."""


def save(folder: Path, nodes: int, edges: int) -> GraphStore:
    """The graph of the service's measurements, as a file and as a store."""
    store = loaded(nodes, edges, np.random.default_rng(0))
    columns = store.edges[EDGE].columns()
    index = np.stack((columns["source"], columns["target"]))
    np.savez(folder / "graph.npz", x=store.nodes[NODE].features.numpy(), edge_index=index)
    return store


@asynccontextmanager
async def engine(folder: Path, level: int, log: bool) -> AsyncIterator[GraphEngine]:
    """The service's engine, in this process, on the graph in `folder`, with as many threads as torch has anyway."""
    made = GraphEngine(
        target=f"{HERE / 'graphs_model.py'}:Net",
        graph=str(folder / "graph.npz"),
        edges={"node:to:node": {"multi": True}},
        log=str(folder / "log") if log else None,
        level=level,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def ask(made: GraphEngine, payload: Any) -> Any:
    """One request. Raises RuntimeError with what it was refused for."""
    work = Work(id=f"r{time.perf_counter_ns()}", payload=payload, cost={}, arrival=0.0)
    chunks = [chunk async for chunk in made.run(work)]
    if chunks[0].data is None:
        raise RuntimeError(chunks[0].finish)
    return chunks[0].data


def _updates(store: GraphStore, seed: int, count: int) -> list[Update]:
    """Made beforehand; they fit the graph as it was."""
    stream = Stream(store, np.random.default_rng(seed))
    return [Update(stream.batch(CHANGES).encode(), CHANGES) for _ in range(count)]


async def sustained(report: Report, folder: Path, store: GraphStore, limit_s: float) -> None:
    """Changes a second with the durable log: clients that send 256 changes each, one update after the other.

    An update is stale until its receipt comes, which is when it is visible and on the disk. Then a restart.
    """
    ready = _updates(store, 2, int(limit_s * 400))
    waits: list[float] = []
    async with engine(folder, 1, log=True) as made:
        for _ in range(8):
            await ask(made, ready.pop())
        began = time.perf_counter()
        until = began + limit_s

        async def client() -> None:
            while time.perf_counter() < until and ready:
                update, at = ready.pop(), time.perf_counter()
                await ask(made, update)
                waits.append(time.perf_counter() - at)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        took = time.perf_counter() - began
        standing = await ask(made, Ask())
    report.add("edge_updates_per_s", len(waits) * CHANGES / took, "28,000 to 56,000")
    report.add("staleness_p99_ms", 1000 * float(np.quantile(waits, 0.99)), "< 1,000")
    report.figures["staleness_mean_ms"] = 1000 * float(np.mean(waits))
    report.figures["changes_per_batch"] = standing.totals["changes"] / standing.totals["batches"]
    report.figures["dense_share_sustained"] = standing.totals["effort"]["dense"] / standing.totals["batches"]
    report.note(f"sustained: {CLIENTS} clients that send {CHANGES} changes each, one update after the other")
    began = time.perf_counter()
    async with engine(folder, 1, log=True) as made:
        report.add("recovery_s", time.perf_counter() - began)
        again = await ask(made, Ask())
    assert again.version == standing.version, "every acknowledged update is there"
    report.figures["recovered_batches"] = float(again.version - 1)
    log_bytes = sum(path.stat().st_size for path in (folder / "log").glob("*.log"))
    report.figures["recovered_log_mb"] = log_bytes / 1e6
    console.print(f"sustained: {report.figures['edge_updates_per_s']:,.0f} changes a second", highlight=False)


async def _load(
    made: GraphEngine, ready: list[Update], nodes: int, fresh: bool, rate: float, limit_s: float
) -> NDArray[Any]:
    """Response and staleness in seconds of each query; one that has no answer in time has what it waited so far."""
    random, seen = np.random.default_rng(4), []
    asked: set[asyncio.Task[None]] = set()

    async def update() -> None:
        await ask(made, ready.pop())

    async def query() -> None:
        at = time.perf_counter()
        try:
            ids = tensor_of(random.integers(0, nodes, 4))
            answer = await ask(made, Query(ids, max_staleness_ms=0.0 if fresh else None))
            seen.append((time.perf_counter() - at, answer.staleness_ms / 1000))
        except asyncio.CancelledError:
            seen.append((time.perf_counter() - at, 0.0 if fresh else time.perf_counter() - at))
            raise

    async def every(period: float, make: Callable[[], Any]) -> None:
        began = time.perf_counter()
        for n in range(int(limit_s / period)):
            await asyncio.sleep(max(0.0, began + n * period - time.perf_counter()))
            task = asyncio.create_task(make())
            asked.add(task)
            task.add_done_callback(asked.discard)

    await asyncio.gather(every(1 / rate, update), every(1 / QUERIES_PER_S, query))
    if asked:
        await asyncio.wait(asked, timeout=DRAIN_S)
    for task in tuple(asked):
        task.cancel()
    if asked:
        await asyncio.gather(*asked, return_exceptions=True)
    return np.array(seen)


async def _way(folder: Path, store: GraphStore, way: str, rates: Sequence[float], limit_s: float) -> list[NDArray[Any]]:
    """One engine for all rates, the lowest first."""
    level, fresh = WAYS[way]
    ready = _updates(store, 3, sum(int(rate * limit_s) + 1 for rate in rates))
    found = []
    async with engine(folder, level, log=False) as made:
        for rate in rates:
            found.append(await _load(made, ready, store.nodes[NODE].count, fresh, rate, limit_s))
            console.print(
                f"{way} at {rate * CHANGES:,.0f} changes a second: response p99 "
                f"{1000 * np.quantile(found[-1][:, 0], 0.99):.1f} ms, staleness {1000 * found[-1][:, 1].mean():.1f} ms",
                highlight=False,
            )
    return found


def under_load(report: Report, folder: Path, store: GraphStore, rates: Sequence[float], limit_s: float) -> None:
    """Ours at each rate, and both others; the figures of the issue are those of the second rate."""
    found = {way: asyncio.run(_way(folder, store, way, rates, limit_s)) for way in WAYS}
    named = min(1, len(rates) - 1)
    ours, after, stale = (found[way][named] for way in WAYS)
    report.add("query_p50_ms", 1000 * float(np.quantile(ours[:, 0], 0.5)))
    report.add("query_p99_ms", 1000 * float(np.quantile(ours[:, 0], 0.99)))
    report.add("staleness_vs_infer_on_stale", ours[:, 1].mean() / max(stale[:, 1].mean(), 1e-9), "below 1")
    report.add("response_vs_infer_on_stale", float(np.median(ours[:, 0]) / np.median(stale[:, 0])))
    report.add("response_vs_infer_after_update", float(ours[:, 0].mean() / after[:, 0].mean()), "below 1")
    report.note(
        f"answers: {QUERIES_PER_S} queries of 4 nodes a second; the ratios at {rates[named] * CHANGES:,.0f} changes; "
        "means of staleness, medians of response against infer-on-stale, means against infer-after-update"
    )
    for way, each in found.items():
        for rate, seen in zip(rates, each, strict=True):
            key = f"{way.replace('-', '_')}_{rate * CHANGES:g}"
            for name, value in (
                ("response_p50", np.median(seen[:, 0])),
                ("response_p99", np.quantile(seen[:, 0], 0.99)),
                ("staleness_mean", seen[:, 1].mean()),
                ("staleness_p99", np.quantile(seen[:, 1], 0.99)),
            ):
                report.figures[f"{name}_ms_{key}"] = 1000 * float(value)
    with picture("graphs", "Answers while updates come", columns=2) as (left, right):
        for axis, name in ((left, "response_p99"), (right, "staleness_mean")):
            for way in WAYS:
                values = [report.figures[f"{name}_ms_{way.replace('-', '_')}_{rate * CHANGES:g}"] for rate in rates]
                axis.plot([rate * CHANGES for rate in rates], values, marker="o", label=way)
            axis.set_yscale("symlog", linthresh=1.0)
            axis.set_xlabel("edge changes a second")
            axis.set_ylabel(f"{name.replace('_', ' ')} (ms)")
            axis.legend()
