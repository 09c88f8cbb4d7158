"""The settings of graph services. Users and the rest of the house find them in `settings`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from foreserve.settings_base import Settings, above, at_least
from foreserve.settings_services import ServiceSettings


class GraphNodeSettings(Settings, frozen=True, kw_only=True):
    """A type of nodes: the width of their `features`; no id reaches `most`."""

    features: int
    most: int = 2**31 - 1

    def __post_init__(self) -> None:
        at_least("features", self.features, 1)
        at_least("most", self.most, 1)


class GraphEdgeSettings(Settings, frozen=True, kw_only=True):
    """A type of edges, `source:relation:target`: whether each has a weight, how many `attributes`, whether two nodes
    may have several, after how many seconds they expire. `None`: as the data has it, and else none."""

    weighted: bool | None = None
    attributes: int | None = None
    multi: bool | None = None
    expire_s: float | None = None

    def __post_init__(self) -> None:
        if self.attributes is not None:
            at_least("attributes", self.attributes, 0)
        if self.expire_s is not None:
            above("expire_s", self.expire_s, 0)


class GraphSettings(ServiceSettings, frozen=True, kw_only=True):
    """A graph neural network over a graph that changes. `target` is the model's class, `"file.py:Net"`, made with the
    keyword arguments `options` and the state dict in `weights` (safetensors or torch).

    `graph` is what to begin with: an npz file, a folder of Parquet, or a callable that returns `Data` or `HeteroData`.
    `nodes` and `edges` say what it is made of where no data tells. `log` is the folder that keeps every update and
    where a restart goes on; with `durability: async` an update is acknowledged before the disk has it.

    `mode: incremental` keeps the first `level` layers up to date (`None`: all but the last, or as few as let 99 of 100
    queries of a node read at most `query_edges` edges) and computes the others for the nodes of a query; `recompute`
    runs the model's own forward over all nodes once a version. A batch of updates is closed at `batch_changes`, or when
    its oldest has waited `batch_wait_s`. The first of `replicas` writes, the others read its log; of a range it always
    stays. Outputs of nodes that are asked for again are kept in at most `hot_bytes` until they may have changed (0:
    none). `device` and `threads` are torch's.
    """

    target: str
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    weights: str | None = None
    graph: str | None = None
    nodes: dict[str, GraphNodeSettings] = msgspec.field(default_factory=dict)
    edges: dict[str, GraphEdgeSettings] = msgspec.field(default_factory=dict)
    log: str | None = None
    durability: Literal["durable", "async"] = "durable"
    mode: Literal["incremental", "recompute"] = "incremental"
    level: int | None = None
    query_edges: int | None = None
    batch_changes: int = 32_768
    batch_wait_s: float = 0.0
    hot_bytes: int = 0
    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if ":" not in self.target:
            raise ValueError(f'`target` is {self.target!r}; valid: "module:name" or "file.py:name"')
        if self.bounds[0] < 1:
            raise ValueError(f"`replicas` is {self.replicas}; a graph has at least the one that writes")
        if self.bounds[1] > 1 and self.log is None:
            raise ValueError(f"`replicas` is {self.replicas}; those that read follow the `log`, which is not set")
        for word in self.edges:
            if word.count(":") != 2:
                raise ValueError(f"`edges`: {word!r} is no edge type; valid: source:relation:target, as user:buys:item")
        if self.graph is None and not (self.nodes and self.edges):
            raise ValueError("`graph` names no data; set it, or `nodes` and `edges` to begin with nothing")
        if self.level is not None:
            at_least("level", self.level, 0)
            if self.query_edges is not None:
                raise ValueError("`level` is set, so `query_edges` would choose nothing; set one of them")
        if self.threads is not None:
            at_least("threads", self.threads, 1)
        at_least("batch_changes", self.batch_changes, 1)
        at_least("batch_wait_s", self.batch_wait_s, 0)
        at_least("hot_bytes", self.hot_bytes, 0)
