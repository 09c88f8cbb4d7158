"""The device that torch is to use. Tests that need a GPU compare it with the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foreserve.errors import ConfigError
from foreserve.graphs import snapshot
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.making import GraphOptions, model_of, opened
from foreserve.graphs.schema import NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from tests.graphs.models import KINDS, WEIGHTED, loaded, mixed_batch, net

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
APP = Path(__file__).resolve().parents[1] / "services" / "graph_app.py"


def _options(device: str) -> GraphOptions:
    return GraphOptions(target=f"{APP}:Net", graph=f"{APP}:graph", device=device)


@pytest.mark.parametrize("device", ["cudaa", "xpu:7"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device: torch cannot use '{device}' here"):
        model_of(_options(device))


@gpu
@needs_gpu
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_gpu_answers_what_the_cpu_does(kind: str, share: float, tmp_path: Path) -> None:
    schema = Schema.homogeneous(4, EdgeType(weighted=kind in WEIGHTED, multi=True))
    graphs = []
    for device in ("cpu", "cuda"):
        model = net(kind, [4, 8, 3], kind in WEIGHTED).to(device)
        there = loaded(schema, 80, 300)
        store = GraphStore(schema, torch.float64, device)
        snapshot.restore(snapshot.take(there, {}), store, "the test")
        graphs.append(LiveGraph(take_apart(model, schema), store, dense_share=share, hot_bytes=2_000))
    random = np.random.default_rng(0)
    for step in range(12):
        batch = mixed_batch(graphs[0].store, step, random)
        for _ in range(3):
            every = graphs[0].store.alive(NODE)
            rows = [graph.query(NODE, every).rows.cpu() for graph in graphs]
            assert torch.allclose(*rows, atol=1e-10)
        frozen = graphs[1].store.freeze()
        want = snapshot.take(graphs[0].store, {}).arrays
        for graph in graphs:
            graph.apply(batch)
        assert all(np.allclose(values, want[name]) for name, values in frozen.copy().items())
        graphs[1].store.thaw()
    assert graphs[1].tables.device.type == "cuda"
    assert graphs[1].drift() < 1e-10


@gpu
@needs_gpu
def test_the_setting_puts_model_features_and_tables_on_the_gpu() -> None:
    graph = opened(_options("cuda"), 0.0).graph
    assert isinstance(graph, LiveGraph)
    assert graph.store.nodes[NODE].features.is_cuda
    assert graph.query(NODE, [1, 2]).rows.is_cuda
