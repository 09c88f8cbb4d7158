"""Graph neural networks on graphs that change: what an update costs, how many a second, and how stale answers are.

`python -m benchmarks.graphs [--quick] [--json FILE]`. Generated power-law graphs, width 128, ten edges a node. An
update is a batch of 256 directed edge changes, half of them deletes. Against it, in the same run:

- full recompute: the model's own forward over all nodes (PyTorch Geometric);
- affected region: the rows that a batch reaches, layer by layer, each from all its in-edges;
- all layers: our differences, brought to the last layer too.

Then the service: changes a second with the durable log, and answers while updates come, against computing an answer
only after all updates (`infer-after-update`) and answering from a full table that lags (`infer-on-stale`).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Report, arguments, median, picture
from benchmarks.graphs_model import SCHEMA, WIDTH, Net, Stream, loaded
from foreserve.core import Work
from foreserve.graphs.asked import Query, Update
from foreserve.graphs.changes import Changes
from foreserve.graphs.engine import GraphEngine
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.recomputed import forward
from foreserve.graphs.schema import EDGE, NODE
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from foreserve.graphs.writer import recover
from foreserve.tensors import tensor_of

CHANGES = 256
HERE = Path(__file__).resolve().parent


def seconds(fn: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def updates(
    report: Report, edges: int, kinds: Sequence[str], layers: int, times: int, theirs: bool
) -> dict[str, float]:
    """What a batch costs, ours and the others', at one size. Medians over batches; ratios of medians."""
    made: dict[str, float] = {}
    for kind in kinds:
        random = np.random.default_rng(0)
        store = loaded(edges // 10, edges, random)
        model = Net(kind, layers)
        program = take_apart(model, SCHEMA)
        name = f"{kind}_{layers}_{edges:.0e}".replace("+0", "")
        for stream, hubs in (("", False), ("_hubs", True)):
            graph = LiveGraph(program, store)
            batches = Stream(store, random, hubs=hubs)
            graph.apply(batches.batch(CHANGES))
            took, dense, reached = [], 0, []
            for n in range(times):
                batch = batches.batch(CHANGES)
                if theirs and n < 3:
                    reached.append(affected(graph, model, batch))
                began = time.perf_counter()
                dense += graph.apply(batch).effort.dense
                took.append(time.perf_counter() - began)
            made[name + stream] = report.add(f"update_ms_{name}{stream}", [1000 * each for each in took])
            if dense:
                report.note(f"{name}{stream}: the dense fallback ran for {dense} of {times} batches' layers")
            if theirs:
                whole = [seconds(partial(forward, model, store)) for _ in range(2)]
                report.add(f"full_ratio_{name}{stream}", median(whole) / median(took))
                report.add(f"affected_ratio_{name}{stream}", median(reached) / median(took))
                every = LiveGraph(program, store, layers)
                more = [seconds(partial(every.apply, batches.batch(CHANGES))) for _ in range(times // 2)]
                report.add(f"all_layers_ratio_{name}{stream}", median(more) / median(took))
                del every
            report.figures[f"tables_mb_{name}"] = graph.tables.nbytes / 1e6
            del graph
    return made


def affected(graph: LiveGraph, model: Net, batch: Changes) -> float:
    """Seconds to compute the rows that a batch reaches from all their in-edges, layer by layer, by the library.

    Of the layer's inputs everything is known (a table of every layer is kept); the graph is taken as it is.
    """
    edges = graph.store.edges[EDGE]
    ends = np.unique(np.concatenate([group.columns["target"] for group in batch.groups]))
    x = graph.store.nodes[NODE].features
    began = time.perf_counter()
    reached = ends
    for layer in model.layers:
        _, slots = edges.out.entries(reached)
        reached = np.union1d(np.union1d(reached, edges.out.columns["neighbour"][slots]), ends)
        of, slots = edges.into.entries(reached)
        source, place = np.unique(np.append(edges.into.columns["neighbour"][slots], reached), return_inverse=True)
        index = torch.from_numpy(np.stack((place[: len(of)], place[len(of) :][of])))
        with torch.no_grad():
            layer(x[torch.from_numpy(source)], index)
    return time.perf_counter() - began


def error_after(report: Report, changes: int) -> None:
    """The largest relative error of any row after many mixed updates, against float64."""
    random = np.random.default_rng(1)
    store = loaded(2_000, 20_000, random)
    model = Net("gcn", 3)
    graph = LiveGraph(take_apart(model, SCHEMA), store)
    stream, done = Stream(store, random), 0
    while done < changes:
        batch = stream.batch(CHANGES - 6).set_features(
            NODE, random.integers(0, 2_000, 6), random.standard_normal((6, WIDTH), dtype=np.float32)
        )
        graph.apply(batch)
        done += len(batch)
    exact = GraphStore(SCHEMA, torch.float64)
    exact.load({NODE: store.nodes[NODE].features}, {EDGE: store.edges[EDGE].columns()})
    want = forward(model.double(), exact)[NODE]
    model.float()
    got = graph.query(NODE, store.alive(NODE)).rows.double()
    report.add("max_relative_error", float((got - want).abs().max() / want.abs().max()), "< 1e-4")


def memory(report: Report, edges: int) -> None:
    """Of the edges in both directions, without features."""
    random = np.random.default_rng(0)
    nodes = edges // 10
    a = np.minimum((nodes * random.random(edges) ** 1.5).astype(np.int32), nodes - 1)
    store = GraphStore(SCHEMA)
    load = seconds(
        lambda: store.load(
            {NODE: np.zeros((nodes, WIDTH), np.float32)}, {EDGE: {"source": a, "target": random.permutation(a)}}
        )
    )
    report.add(f"mb_at_{edges:.0e}_edges".replace("+0", ""), store.nbytes / 1e6, "a few hundred")
    report.add(f"load_s_at_{edges:.0e}_edges".replace("+0", ""), load)


@asynccontextmanager
async def engine(folder: Path, level: int, log: bool) -> Any:
    """The service's engine, in this process, on the graph in `folder`."""
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


def save(folder: Path, nodes: int, edges: int) -> GraphStore:
    """The graph of the service's measurements, as a file and as a store."""
    store = loaded(nodes, edges, np.random.default_rng(0))
    columns = store.edges[EDGE].columns()
    index = np.stack((columns["source"], columns["target"]))
    np.savez(folder / "graph.npz", x=store.nodes[NODE].features.numpy(), edge_index=index)
    return store


async def sustained(report: Report, folder: Path, store: GraphStore, limit_s: float) -> None:
    """Changes a second with the durable log: clients that send 256 changes each, one update after the other."""
    stream = Stream(store, np.random.default_rng(2))
    ready = [Update(stream.batch(CHANGES).encode(), CHANGES) for _ in range(2_000)]
    waits: list[float] = []
    async with engine(folder, 1, log=True) as made:
        until = time.perf_counter() + limit_s
        began = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < until and ready:
                update, at = ready.pop(), time.perf_counter()
                await ask(made, update)
                waits.append(time.perf_counter() - at)

        await asyncio.gather(*(client() for _ in range(32)))
        took = time.perf_counter() - began
    report.add("edge_updates_per_s", len(waits) * CHANGES / took, "28,000 to 56,000")
    report.add("staleness_p99_ms", 1000 * float(np.quantile(waits, 0.99)), "< 1,000")
    keep = GraphStore(SCHEMA)
    report.add("recovery_s", seconds(lambda: recover(keep, folder / "log")))
    report.figures["recovered_batches"] = keep.version


async def mixed(folder: Path, store: GraphStore, level: int, fresh: bool, rate: float, limit_s: float) -> NDArray[Any]:
    """Response and staleness in seconds of each query: `rate` updates a second of 256 changes, and 200 queries."""
    stream, random = Stream(store, np.random.default_rng(3)), np.random.default_rng(4)
    ready = [Update(stream.batch(CHANGES).encode(), CHANGES) for _ in range(int(rate * limit_s) + 1)]
    seen: list[tuple[float, float]] = []
    async with engine(folder, level, log=False) as made:
        asked: set[asyncio.Task[None]] = set()

        async def query() -> None:
            at = time.perf_counter()
            ids = tensor_of(random.integers(0, store.nodes[NODE].count, 4))
            answer = await ask(made, Query(ids, max_staleness_ms=0.0 if fresh else None))
            seen.append((time.perf_counter() - at, answer.staleness_ms / 1000))

        async def every(period: float, make: Callable[[], Any]) -> None:
            began = time.perf_counter()
            for n in range(int(limit_s / period)):
                await asyncio.sleep(max(0.0, began + n * period - time.perf_counter()))
                task = asyncio.create_task(make())
                asked.add(task)
                task.add_done_callback(asked.discard)

        await asyncio.gather(every(1 / rate, lambda: ask(made, ready.pop())), every(0.005, query))
        while asked:
            await asyncio.wait(asked)
    return np.array(seen)


def under_load(report: Report, folder: Path, store: GraphStore, rates: Sequence[float], limit_s: float) -> None:
    """Ours at each rate, and both others; the figures are those of the middle rate."""
    ways = {"cut": (1, False), "infer-after-update": (2, True), "infer-on-stale": (2, False)}
    found: dict[tuple[str, float], NDArray[Any]] = {}
    for rate in rates:
        for way, (level, fresh) in ways.items():
            found[way, rate] = asyncio.run(mixed(folder, store, level, fresh, rate, limit_s))
    middle = rates[len(rates) // 2]
    ours, after, stale = (found[way, middle] for way in ways)
    response = [float(np.quantile(each[:, 0], 0.5)) for each in (ours, after, stale)]
    staleness = [float(each[:, 1].mean()) for each in (ours, stale)]
    report.add("query_p50_ms", 1000 * response[0])
    report.add("query_p99_ms", 1000 * float(np.quantile(ours[:, 0], 0.99)))
    report.add("staleness_vs_infer_on_stale", staleness[0] / max(staleness[1], 1e-9), "below 1")
    report.add("response_vs_infer_on_stale", response[0] / response[2])
    report.add("response_vs_infer_after_update", float(ours[:, 0].mean() / after[:, 0].mean()), "below 1")
    for (way, rate), each in found.items():
        key = f"{way.replace('-', '_')}_{rate:g}"
        report.figures[f"response_p99_ms_{key}"] = 1000 * float(np.quantile(each[:, 0], 0.99))
        report.figures[f"staleness_mean_ms_{key}"] = 1000 * float(each[:, 1].mean())
        report.figures[f"staleness_p99_ms_{key}"] = 1000 * float(np.quantile(each[:, 1], 0.99))
    with picture("graphs", "Answers while updates come", columns=2) as (left, right):
        for axis, column, what in ((left, 0, "response p99 (ms)"), (right, 1, "staleness mean (ms)")):
            for way in ways:
                values = [
                    1000
                    * float(np.quantile(found[way, rate][:, 0], 0.99) if column == 0 else found[way, rate][:, 1].mean())
                    for rate in rates
                ]
                axis.plot([rate * CHANGES for rate in rates], values, marker="o", label=way)
            axis.set_xlabel("edge changes a second")
            axis.set_ylabel(what)
            axis.legend()


def main() -> None:
    """See the module's docstring."""
    asked = arguments(__doc__)
    quick = asked.quick
    report = Report("graphs", {"width": WIDTH, "changes": CHANGES, "threads": torch.get_num_threads(), "quick": quick})
    updates(report, 10**5, ("gcn",) if quick else ("gcn", "sage", "gin"), 2, 10, theirs=True)
    if not quick:
        updates(report, 10**6, ("gcn", "sage", "gin"), 2, 20, theirs=True)
        updates(report, 10**6, ("gcn",), 3, 10, theirs=True)
        updates(report, 10**7, ("gcn",), 2, 10, theirs=False)
        for key in ("full_recompute", "affected", "all_layers"):
            word = "full" if key == "full_recompute" else key
            report.add(
                f"update_vs_{key}_1e6", report.figures[f"{word}_ratio_gcn_2_1e6"], "100" if word == "full" else ""
            )
    error_after(report, 10**4 if quick else 10**5)
    memory(report, 10**6)
    if not quick:
        memory(report, 10**7)
    folder = Path(tempfile.mkdtemp(prefix="foreserve-graphs-"))
    try:
        store = save(folder, *((17_000, 120_000) if quick else (170_000, 1_200_000)))
        asyncio.run(sustained(report, folder, store, 5.0 if quick else 20.0))
        under_load(report, folder, store, (10, 40) if quick else (10, 40, 100), 3.0 if quick else 10.0)
    finally:
        shutil.rmtree(folder)
    report.finish(asked.json)


if __name__ == "__main__":
    main()
