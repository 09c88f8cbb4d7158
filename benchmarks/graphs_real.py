"""Real graphs: what a batch costs on citations and friendships, and on messages that are forgotten after a while."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Report, console
from benchmarks.data import folder
from benchmarks.graphs_model import SCHEMA, WIDTH, Net
from benchmarks.graphs_updates import CHANGES, Sizes, compared, forwards, seconds
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def citations(path: Path) -> Pairs:
    """Both ways."""
    with np.load(path, allow_pickle=False) as file:
        source = np.repeat(np.arange(len(file["adj_indptr"]) - 1), np.diff(file["adj_indptr"]))
        target = file["adj_indices"].astype(np.int64)
    return np.append(source, target), np.append(target, source)


def friends(path: Path) -> Pairs:
    """Both ways."""
    with lzma.open(path, "rt") as file:
        a, b = np.loadtxt(file, dtype=np.int64, delimiter=",", skiprows=1).T
    return np.append(a, b), np.append(b, a)


def timed(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Source, target and time, in the order of time, with ids from 0 on. Lines that are no numbers are passed over."""
    text, made = path.name.endswith(".txt.xz"), []
    with lzma.open(path, "rt") as file:
        for line in file:
            try:
                made.append([float(word) for word in line.split(None if text else ",")])
            except ValueError:
                continue  # the heading, and one line of the ratings that has lost a figure
    rows = np.array(made)
    time = rows[:, 2 if text else 3]
    rows = rows[np.argsort(time, kind="stable")]
    _, ids = np.unique(rows[:, :2], return_inverse=True)
    source, target = ids.reshape(-1, 2).T
    return source, target, np.sort(time)


def held(source: NDArray[np.int64], target: NDArray[np.int64]) -> GraphStore:
    """With drawn features of the width of all others."""
    nodes = int(max(source.max(), target.max())) + 1
    store = GraphStore(SCHEMA)
    features = np.random.default_rng(0).standard_normal((nodes, WIDTH), dtype=np.float32)
    store.load({NODE: features}, {EDGE: {"source": source, "target": target}})
    return store


def still(report: Report, batches: int) -> None:
    """Citations and friendships, with the same stream of changes as the generated graphs."""
    there = folder() / "graphs"
    graphs = {
        "cora": citations(there / "npz" / "cora.npz"),
        "facebook": friends(there / "facebook" / "facebook_edges.csv.xz"),
    }
    for name, pairs in graphs.items():
        compared(report, held(*pairs), "gcn", 2, Sizes(batches, batches // 4, 3), name=name)


def streams(report: Report, most: int) -> None:
    """Messages and ratings as they came, in batches of 256; each is forgotten when it is a quarter of all time old."""
    for name, file in (("messages", "CollegeMsg.txt.xz"), ("ratings", "soc-sign-bitcoinotc.csv.xz")):
        source, target, time = timed(folder() / "graphs" / "temporal" / file)
        nodes = int(max(source.max(), target.max())) + 1
        schema = Schema.homogeneous(WIDTH, EdgeType(multi=True, expire_s=float(time[-1] - time[0]) / 4))
        store = GraphStore(schema)
        half = len(source) // 2
        features = np.random.default_rng(0).standard_normal((nodes, WIDTH), dtype=np.float32)
        first = {"source": source[:half], "target": target[:half], "time": time[:half]}
        store.load({NODE: features}, {EDGE: first})
        model = Net("gcn", 2)
        graph = LiveGraph(take_apart(model, schema), store)
        took, dense, layers = [], 0, 0
        ends = np.arange(half, len(source), CHANGES)[:most]
        for at in ends:
            part = slice(at, at + CHANGES)
            batch = Changes().insert_edges(EDGE, source[part], target[part], time=time[part])
            expiry = Changes().expire_edges(EDGE, float(time[part][-1]) - (schema.edges[EDGE].expire_s or 0.0))
            applied = []
            taken = seconds(lambda: applied.extend([graph.apply(batch), graph.apply(expiry)]))  # noqa: B023
            took.append(taken)
            dense += sum(each.effort.dense for each in applied)
            layers += 2 * graph.level
        report.add(f"update_ms_{name}", [1000 * each for each in took])
        report.figures[f"dense_share_{name}"] = dense / layers
        whole = [taken for side, taken in forwards(model, store) if side == "full"]
        report.add(f"full_ratio_{name}", whole[0] / float(np.median(took)))
        console.print(f"{name}: {report.figures[f'update_ms_{name}']:.2f} ms a batch with its expiry", highlight=False)
