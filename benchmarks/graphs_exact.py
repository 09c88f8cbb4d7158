"""How near what is kept comes to what is computed anew, and how much memory a graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from benchmarks.common import ROOT, Report, console
from benchmarks.graphs_model import SCHEMA, WIDTH, Net, Stream, loaded
from benchmarks.graphs_updates import CHANGES, seconds
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.loading import data_of, load
from foreserve.graphs.recomputed import forward
from foreserve.graphs.schema import EDGE, NODE
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from foreserve.pyfile import load_file


def error_after(report: Report, kind: str, layers: int, changes: int) -> float:
    """The largest relative error of any row after many mixed updates, against float64, and against a nightly job."""
    random = np.random.default_rng(1)
    store = loaded(2_000, 20_000, random)
    model = Net(kind, layers)
    graph = LiveGraph(take_apart(model, SCHEMA), store)
    stream, done = Stream(store, random), 0
    while done < changes:
        batch = stream.batch(CHANGES - 8).set_features(
            NODE, random.integers(0, 2_000, 6), random.standard_normal((6, WIDTH), dtype=np.float32)
        )
        new = int(random.integers(2_000, 2_400))
        batch.insert_nodes(NODE, [new], random.standard_normal((1, WIDTH), dtype=np.float32))
        batch.insert_edges(EDGE, [new, 7], [9, new])
        gone = int(random.integers(2_000, 2_400))
        if store.nodes[NODE].count > gone and store.nodes[NODE].alive[gone] and gone != new:
            batch.delete_nodes(NODE, [gone])
        graph.apply(batch)
        done += len(batch)
    alive = store.alive(NODE)
    nightly = forward(model, store)[NODE][alive]
    exact = GraphStore(SCHEMA, torch.float64)
    exact.load({NODE: store.nodes[NODE].features}, {EDGE: store.edges[EDGE].columns()})
    got = graph.query(NODE, alive).rows
    want = forward(model.double(), exact)[NODE][alive]
    error = float((got.double() - want).abs().max() / want.abs().max())
    report.figures[f"max_relative_error_{kind}_{layers}"] = error
    job = float((got - nightly).abs().max() / nightly.abs().max())
    report.figures[f"nightly_relative_difference_{kind}_{layers}"] = job
    console.print(f"{kind} with {layers} layers after {done:,} changes: off by {error:.1e}", highlight=False)
    return error


def errors(report: Report, changes: int) -> None:
    """Of three models; the figure of the issue is the largest."""
    found = [error_after(report, kind, layers, changes) for kind, layers in (("gcn", 3), ("sage", 3), ("gin", 2))]
    report.add("max_relative_error", max(found), "< 1e-4")


def typed(report: Report, steps: int) -> None:
    """The example of typed payments: a stream of them, then the model's own forward over all."""
    example = load_file(ROOT / "examples" / "graphs" / "fraud.py")
    torch.manual_seed(0)
    data, model = data_of(example.history()), example.Fraud().eval()
    schema = data.schema(multi=True)
    store = GraphStore(schema)
    load(store, data)
    graph = LiveGraph(take_apart(model, schema), store)
    random = np.random.default_rng(0)
    for _ in range(steps):
        cards, merchants = random.integers(0, 400, 50), random.integers(0, 60, 50)
        amounts = random.random((50, 2), dtype=np.float32)
        batch = Changes().insert_edges(example.PAYS, cards, merchants, attributes=amounts)
        batch.insert_edges(example.PAID_BY, merchants, cards, attributes=amounts)
        batch.delete_edges(example.PAYS, cards[:9], merchants[:9]).delete_edges(
            example.PAID_BY, merchants[:9], cards[:9]
        )
        graph.apply(batch)
    nightly = forward(model, store)["card"]
    got = graph.query("card", store.alive("card")).rows
    difference = float((got - nightly).abs().max() / nightly.abs().max())
    report.figures["nightly_relative_difference_typed"] = difference
    console.print(f"the typed example after {steps} batches: off a nightly job by {difference:.1e}", highlight=False)


def memory(report: Report, sizes: Sequence[int]) -> None:
    """Of the edges in both directions, without features."""
    for edges in sizes:
        random = np.random.default_rng(0)
        nodes = edges // 10
        a = np.minimum((nodes * random.random(edges) ** 1.5).astype(np.int32), nodes - 1)
        features, columns = np.zeros((nodes, WIDTH), np.float32), {"source": a, "target": random.permutation(a)}
        store = GraphStore(SCHEMA)
        took = seconds(partial(store.load, {NODE: features}, {EDGE: columns}))
        name = f"1e{round(np.log10(edges))}"
        report.add(f"mb_at_{name}_edges", store.nbytes / 1e6, "a few hundred" if edges == 10**7 else "")
        report.add(f"load_s_at_{name}_edges", took)
