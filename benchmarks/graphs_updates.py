"""What a batch of changes costs the update phase, and what it costs by the other ways, in turn on the same batches."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch_geometric.utils import to_torch_csr_tensor

from benchmarks.common import Report, console, ratios
from benchmarks.graphs_model import SCHEMA, Net, Stream, expiring, loaded
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.schema import EDGE, NODE
from foreserve.graphs.store import GraphStore, Prepared
from foreserve.graphs.taking_apart import take_apart

CHANGES = 256
BUSY = 1.1
"""Seconds of the wall for one of the processor, above which others had a good part of it."""

SIDES = ("full", "full_sparse", "affected", "all_layers")
"""What ours is compared with. The forward is given the edges as an index, and as a sparse matrix."""


class Sizes(NamedTuple):
    """How often each side is measured."""

    batches: int
    affected: int
    full: int


def now() -> float:
    """In seconds, of the processor that this process uses while torch has one thread, and else of the wall.

    On a quiet machine the two are the same. On a busy one a short call waits for the processor many times as long as it
    runs, a long one only a few times: ratios of wall times then say nothing.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(fn: Callable[[], Any]) -> float:
    """How long a call takes; see `now`."""
    began = now()
    fn()
    return now() - began


def compared(
    report: Report,
    store: GraphStore,
    kind: str,
    layers: int,
    sizes: Sizes,
    hubs: bool = False,
    name: str | None = None,
) -> str:
    """All sides at one model and graph; the name under which its figures are.

    Every batch goes through ours and through differences of all layers; the first `affected` of them through the
    affected region too, and between batches the model's own forward runs over all nodes `full` times. Each ratio is of
    the medians, and its spread that of the batches. The graph that the forward is given is made beforehand.
    """
    edges = len(store.edges[EDGE])
    name = name or f"{kind}_{layers}_1e{round(np.log10(edges))}" + ("_hubs" if hubs else "")
    model = Net(kind, layers)
    program = take_apart(model, SCHEMA)
    ours, every = LiveGraph(program, store), LiveGraph(program, store, layers) if sizes.affected else None
    stream = Stream(store, np.random.default_rng(1), hubs=hubs)
    took: dict[str, list[float]] = {"ours": [], "all_layers": [], "affected": [], "full": [], "full_sparse": []}
    dense = {"ours": 0, "all_layers": 0}
    pushes, fulls = [], _spread(sizes.batches, sizes.full)
    wall, used = time.perf_counter(), time.process_time()
    for n in range(-2, sizes.batches):  # two to warm up
        batch = stream.batch(CHANGES)
        prepared, prepare_s = _timed(partial(store.prepare, batch))
        update, update_s = _timed(partial(ours.propagate, prepared))
        times, efforts = {"ours": prepare_s + update_s}, {"ours": update.effort.dense}
        if every is not None:
            more, more_s = _timed(partial(every.propagate, prepared))
            times["all_layers"], efforts["all_layers"] = prepare_s + more_s, more.effort.dense
        reached = affected(store, model, prepared) if 0 <= n < sizes.affected else None
        commit_s = seconds(partial(store.commit, prepared))
        times["ours"] += commit_s + seconds(partial(ours.tables.commit, update.dirty))
        if every is not None:
            times["all_layers"] += commit_s + seconds(partial(every.tables.commit, more.dirty))
        if n < 0:
            continue
        for side, taken in times.items():
            took[side].append(taken)
            dense[side] += bool(efforts[side])
        pushes.append(update.effort.pushes)
        if reached is not None:
            took["affected"].append(prepare_s + reached + commit_s)
        if n in fulls:
            for side, taken in forwards(model, store):
                took[side].append(taken)
    report.figures[f"wall_per_cpu_{name}"] = (time.perf_counter() - wall) / (time.process_time() - used)
    if report.figures[f"wall_per_cpu_{name}"] > BUSY and torch.get_num_threads() == 1:
        report.note(f"the machine was busy with other work ({name}): see wall_per_cpu")
    _report(report, name, took, dense, pushes)
    return name


def _report(report: Report, name: str, took: dict[str, list[float]], dense: dict[str, int], pushes: list[int]) -> None:
    ours = took["ours"]
    report.add(f"update_ms_{name}", [1000 * each for each in ours])
    report.add(f"pushes_{name}", pushes)
    middle = float(np.median(ours))
    for side in SIDES:
        if took[side]:
            each = ratios(took[side], ours) if side == "all_layers" else [taken / middle for taken in took[side]]
            report.add(f"{side}_ratio_{name}", each)
            report.add(f"{side}_ms_{name}", [1000 * taken for taken in took[side]])
    report.figures[f"dense_share_{name}"] = dense["ours"] / len(ours)
    if took["all_layers"]:
        report.figures[f"dense_share_all_layers_{name}"] = dense["all_layers"] / len(ours)
    told = ", ".join(f"{side} x{report.figures[f'{side}_ratio_{name}']:.1f}" for side in SIDES if took[side])
    console.print(f"{name}: {1000 * middle:.2f} ms a batch; {told or 'nothing to compare'}", highlight=False)


def _spread(batches: int, times: int) -> set[int]:
    return {int(n) for n in np.linspace(0, batches - 1, times)} if times else set()


def _timed(fn: Callable[[], Any]) -> tuple[Any, float]:
    began = now()
    made = fn()
    return made, now() - began


def forwards(model: Net, store: GraphStore) -> Iterator[tuple[str, float]]:
    """The model's own forward over the whole graph as it is, with an edge index and, where it can, a sparse matrix."""
    columns = store.edges[EDGE].columns()
    index = torch.from_numpy(np.stack((columns["source"], columns["target"])).astype(np.int64))
    x = store.nodes[NODE].features[: store.nodes[NODE].count]
    with torch.no_grad():
        yield "full", seconds(lambda: model(x, index))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that such matrices are new in torch
                sparse = to_torch_csr_tensor(index.flip(0), size=(len(x), len(x)))
            yield "full_sparse", seconds(lambda: model(x, sparse))
        except (RuntimeError, NotImplementedError, ValueError, AssertionError):
            return  # not every layer takes one


def affected(store: GraphStore, model: Net, prepared: Prepared) -> float:
    """Seconds to compute the rows that a batch reaches from all their in-edges, layer by layer, by the library.

    Of the layer's inputs everything is known (a table of every layer is kept); the graph is taken as it was before.
    """
    edges, edit = store.edges[EDGE], prepared.edges[EDGE]
    began = now()
    x = store.nodes[NODE].features
    reached = ends = np.unique(np.append(edit.removed["target"], edit.inserted["target"]))
    for layer in model.layers:
        _, slots = edges.out.entries(reached)
        reached = np.union1d(np.union1d(reached, edges.out.columns["neighbour"][slots]), ends)
        of, slots = edges.into.entries(reached)
        source, place = np.unique(np.append(edges.into.columns["neighbour"][slots], reached), return_inverse=True)
        index = torch.from_numpy(np.stack((place[: len(of)], place[len(of) :][of])))
        with torch.no_grad():
            layer(x[torch.from_numpy(source)], index)
    return now() - began


def with_expiry(report: Report, nodes: int, edges: int, batches: int) -> None:
    """Edges that come, and as many that are older than they may be."""
    store, random = expiring(nodes, edges, np.random.default_rng(0)), np.random.default_rng(1)
    graph = LiveGraph(take_apart(Net("gcn", 2), SCHEMA), store)
    half, took, dense = CHANGES // 2, [], 0
    for n in range(1, batches + 1):
        source, target = random.integers(0, nodes, (2, half))
        batch = Changes().insert_edges(EDGE, source, target, time=np.full(half, float(edges + n * half)))
        expiry = Changes().expire_edges(EDGE, float(n * half))
        before = len(store.edges[EDGE])
        applied = []
        taken = seconds(lambda: applied.extend([graph.apply(batch), graph.apply(expiry)]))  # noqa: B023
        assert before - len(store.edges[EDGE]) in range(2), "as many go as come"
        dense += any(each.effort.dense for each in applied)
        took.append(taken)
    name = f"gcn_2_1e{round(np.log10(edges))}_expiry"
    report.add(f"update_ms_{name}", [1000 * each for each in took])
    report.figures[f"dense_share_{name}"] = dense / batches
    console.print(f"{name}: {report.figures[f'update_ms_{name}']:.2f} ms for a batch and its expiry", highlight=False)


def by_size(report: Report, edges: int, kinds: list[tuple[str, int]], sizes: Sizes, left: Callable[[], float]) -> None:
    """Several models on one generated graph, as long as there is time; what was left out is said."""
    store = loaded(edges // 10, edges, np.random.default_rng(0))
    for n, (kind, layers) in enumerate(kinds):
        began = left()
        if began <= 0:
            skipped = ", ".join(f"{kind} with {layers} layers" for kind, layers in kinds[n:])
            report.note(f"left out for want of time at {edges:.0e} edges: {skipped}")
            return
        compared(report, store, kind, layers, sizes)
