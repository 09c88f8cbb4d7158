"""A graph as its settings say: the model from its class and weights, the store from the log or from data."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from foreserve.errors import ConfigError
from foreserve.graphs import snapshot
from foreserve.graphs.choosing import choose_level
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.loading import GraphData, data_of, load, read_npz, read_parquet
from foreserve.graphs.program import Program
from foreserve.graphs.recomputed import RecomputedGraph
from foreserve.graphs.recording import CannotTakeApart
from foreserve.graphs.schema import EdgeKey, EdgeType, NodeType, Schema, written
from foreserve.graphs.split import split
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from foreserve.graphs.writer import begin, recover
from foreserve.pyfile import load_file


class GraphOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker makes its graph; see `GraphSettings`."""

    target: str
    options: dict[str, Any] = {}
    weights: str | None = None
    graph: str | None = None
    nodes: dict[str, NodeType] = {}
    edges: dict[str, dict[str, Any]] = {}
    log: str | None = None
    durable: bool = True
    mode: str = "incremental"
    level: int | None = None
    query_edges: int | None = None
    hot_bytes: int = 0
    device: str = "cpu"
    threads: int | None = None


class Opened(NamedTuple):
    """A graph, and the idempotency keys that its log knows."""

    graph: LiveGraph | RecomputedGraph
    keys: dict[str, int]


def found(target: str) -> Any:
    """What `"module:name"` or `"file.py:name"` names. Raises ConfigError."""
    place, _, name = target.rpartition(":")
    try:
        made: Any = load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        for part in name.split("."):
            made = getattr(made, part)
    except (ImportError, AttributeError, OSError) as error:
        raise ConfigError(f"{target} cannot be loaded: {error}") from error
    return made


def model_of(options: GraphOptions) -> torch.nn.Module:
    """The model with its weights. Raises ConfigError."""
    code = found(options.target)
    code = getattr(code, "served_code", None) or code
    try:
        model = code(**options.options)
    except Exception as error:
        raise ConfigError(f"{options.target} cannot be made with {options.options}: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"{options.target} makes a {type(model).__name__}, not a torch.nn.Module")
    if options.weights is not None:
        try:
            state = _state(Path(options.weights))
            model.load_state_dict(state)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"weights: {options.weights} do not fit {options.target}: {error}") from None
    try:
        return model.to(options.device).eval()
    except (RuntimeError, AssertionError) as error:  # torch's own words for what it was not built for
        raise ConfigError(f"device: torch cannot use {options.device!r} here: {error}") from None


def _state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as load_tensors

        return load_tensors(path)
    loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def data_from(source: str) -> GraphData:
    """A whole graph: an npz file, a folder of Parquet, or a callable that returns `Data` or `HeteroData`."""
    if ":" in source and not Path(source).exists():
        return data_of(found(source)())
    path = Path(source)
    return read_parquet(path) if path.is_dir() else read_npz(path)


def schema_of(options: GraphOptions, data: GraphData | None) -> Schema:
    """As the settings say, and else as the data has it. Raises ConfigError where neither tells."""
    nodes = dict(options.nodes)
    edges: dict[EdgeKey, EdgeType] = {}
    if data is not None:
        found_ = data.schema()
        nodes = {**found_.nodes, **nodes}
        edges = dict(found_.edges)
    for word, words in options.edges.items():
        parts = word.split(":")
        if len(parts) != 3:
            raise ConfigError(f"edges: {word!r} is no edge type; valid: source:relation:target, as node:to:node")
        key = (parts[0], parts[1], parts[2])
        edges[key] = msgspec.structs.replace(edges.get(key, EdgeType()), **words)
    if not nodes or not edges:
        raise ConfigError("a graph needs `graph` (data to begin with), or `nodes` and `edges` (what it is made of)")
    return Schema(nodes, edges)


def opened(options: GraphOptions, at: float, *, follow: bool = False) -> Opened:
    """Go on from the log where there is one; else begin with the data, and a log. Raises ConfigError.

    With `follow` there is a log, and another process may be writing it. `at` is the wall time of edges of the data that
    bring none.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = None if options.log is None else Path(options.log)
    path = snapshot.newest(folder) if folder is not None else None
    data = None
    if path is not None:
        # What it was made of before says what it is; the settings may still change how long edges live.
        schema = snapshot.read(path).schema
        edges = {key: _expiring(key, edge, options) for key, edge in schema.edges.items()}
        schema = Schema(schema.nodes, edges)
    else:
        data = None if options.graph is None else data_from(options.graph)
        schema = schema_of(options, data)
    model = model_of(options)
    program = None if options.mode == "recompute" else take_apart(model, schema, options.target)
    store = GraphStore(schema, device=options.device)
    keys = recover(store, folder, follow=follow) if folder is not None else None
    if keys is None:
        if data is not None:
            load(store, data, str(options.graph), at)
        else:
            _empty(store)
        if folder is not None:
            begin(store, folder)
    if program is None:
        return Opened(RecomputedGraph(model, store), keys or {})
    level = options.level
    if level is None and options.query_edges is not None:
        level = choose_level(program, store, options.query_edges)
    return Opened(LiveGraph(program, store, level, hot_bytes=options.hot_bytes), keys or {})


def _expiring(key: EdgeKey, edge: EdgeType, options: GraphOptions) -> EdgeType:
    words = options.edges.get(written(key), {})
    asked = words.get("expire_s")
    return edge if asked is None else msgspec.structs.replace(edge, expire_s=asked)


def _empty(store: GraphStore) -> None:
    import numpy as np

    none = {
        key: {
            name: values[:0]
            for name, values in {"source": np.empty(0, np.int64), "target": np.empty(0, np.int64)}.items()
        }
        | {name: values[:0] for name, values in edges.into.columns.items() if name != "neighbour"}
        for key, edges in store.edges.items()
    }
    store.load({name: nodes.features for name, nodes in store.nodes.items()}, none)


class Verdict(NamedTuple):
    """What `foreserve graph check` says of a model. `refused` is None where it can be taken apart."""

    refused: str | None
    lines: list[str]


def check(options: GraphOptions) -> Verdict:
    """Whether a model can be served, and how, without serving it. Raises ConfigError where it cannot be made."""
    data = None if options.graph is None else data_from(options.graph)
    schema = schema_of(options, data)
    model = model_of(options)
    try:
        program = take_apart(model, schema, options.target)
    except CannotTakeApart as error:
        return Verdict(str(error), ['it can be served by full recompute at each version: `mode="recompute"`'])
    return Verdict(None, described(program))


def described(program: Program) -> list[str]:
    """A taken-apart model in words, layer by layer."""
    level = program.depth - 1
    cut = split(program, level)
    lines = [f"{program.depth} layers; {level} are kept up to date, the last is computed for the nodes of a query"]
    for value in program.aggregates():
        reduce = value.op.reduce  # type: ignore[union-attr]
        how = "changed by differences" if reduce.additive else "computed anew where a neighbour changed"
        name = type(reduce).__name__.lower()
        where = written(value.op.key)  # type: ignore[union-attr]
        width = "x".join(str(each) for each in value.shape)
        lines.append(f"layer {value.depth}: {name} over {where}, width {width}, {how}")
    floats = sum(int(torch.tensor(program.values[each].shape).prod()) for each in cut.kept)
    lines.append(f"rows kept: {4 * floats:,} bytes for a node of each type, features among them")
    return lines
