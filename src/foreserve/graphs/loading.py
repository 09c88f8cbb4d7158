"""Whole graphs from what others write: PyTorch Geometric's `Data` and `HeteroData`, npz files, folders of Parquet.

An npz file has the arrays `x`, `edge_index` [2, edges] and, where there are some, `edge_weight`, `edge_attr`,
`edge_time`; of typed graphs each with its type: `x/user`, `edge_index/user:buys:item`. A folder has `nodes.parquet` and
`edges.parquet`, or `nodes.user.parquet` and `edges.user:buys:item.parquet`: columns `id`, `features`, and `source`,
`target`, `weight`, `attributes`, `time`; features and attributes are lists of one length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.errors import ConfigError
from foreserve.graphs.adjacency import Columns
from foreserve.graphs.arrow import arrow_column
from foreserve.graphs.schema import EDGE, NODE, EdgeKey, EdgeType, NodeType, Schema, written
from foreserve.graphs.store import GraphStore

_WORDS = {"edge_weight": "weight", "edge_attr": "attributes", "edge_time": "time"}


class GraphData(NamedTuple):
    """A whole graph: feature rows by node type, which ids are there, and columns of edges by edge type."""

    features: dict[str, NDArray[Any]]
    alive: dict[str, NDArray[np.bool_]]
    edges: dict[EdgeKey, Columns]

    def schema(self, **edge_words: Any) -> Schema:
        """The schema that it fits. `edge_words` are said of every edge type; see `EdgeType`.

        Types in which two nodes have several edges are `multi`.
        """
        nodes = {name: NodeType(features=int(rows.shape[1])) for name, rows in self.features.items()}
        edges = {}
        for key, columns in self.edges.items():
            width = columns["attributes"].shape[1] if "attributes" in columns else 0
            edge = EdgeType(weighted="weight" in columns, attributes=width, multi=_repeated(columns) is not None)
            edges[key] = msgspec.structs.replace(edge, **edge_words)
        return Schema(nodes, edges)


def load(store: GraphStore, data: GraphData, where: str = "the graph", at: float = 0.0) -> None:
    """Put a whole graph into a store, in place of what is there; edges without a time have `at`.

    Raises ConfigError where it does not fit.
    """
    edges: dict[EdgeKey, Columns] = {}
    for name, node in store.schema.nodes.items():
        rows = data.features.get(name)
        if rows is None:
            raise ConfigError(f"{where}: it has no nodes of type {name!r}; it has {', '.join(data.features)}")
        if rows.ndim != 2 or rows.shape[1] != node.features or len(rows) > node.most:
            words = f"{node.features} features and at most {node.most} nodes"
            raise ConfigError(f"{where}: nodes {name!r} have the shape {list(rows.shape)}; the schema has {words}")
        if not np.isfinite(rows).all():
            row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise ConfigError(f"{where}: features of node {row} of type {name!r} are not finite")
    for key, edge in store.schema.edges.items():
        columns = data.edges.get(key, {"source": np.empty(0, np.int64), "target": np.empty(0, np.int64)})
        edges[key] = _fitting(key, edge, columns, data, where, at)
    store.load(data.features, edges, data.alive)


def _fitting(key: EdgeKey, edge: EdgeType, columns: Columns, data: GraphData, where: str, at: float) -> Columns:
    """The columns that the type has, where they are right; a weight that is missing is 1, a time `at`."""
    of = f"{where}: edges {written(key)!r}"
    count = len(columns["source"])
    made: Columns = {}
    for end, type_ in (("source", key[0]), ("target", key[2])):
        ids, alive = columns[end], data.alive[type_]
        wrong = (ids < 0) | (ids >= len(alive))
        wrong |= ~alive[np.where(wrong, 0, ids)] if len(alive) else True
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ConfigError(f"{of}: {end} {ids[at]} in row {at} is no node of type {type_!r}")
        made[end] = ids
    if edge.weighted:
        made["weight"] = columns.get("weight", np.ones(count))
    if edge.attributes:
        if "attributes" not in columns or columns["attributes"].shape[1:] != (edge.attributes,):
            raise ConfigError(f"{of} must have {edge.attributes} attributes each")
        made["attributes"] = columns["attributes"]
    if edge.expire_s is not None:
        made["time"] = columns.get("time", np.full(count, at))
    for name, values in made.items():
        if len(values) != count or not np.isfinite(values).all():
            raise ConfigError(f"{of}: `{name}` must be {count} finite numbers")
    if not edge.multi and (row := _repeated(columns)) is not None:
        pair = f"{columns['source'][row]} and {columns['target'][row]}"
        raise ConfigError(f"{of}: there are several between {pair}; set `multi` of the type")
    return made


def _repeated(columns: Columns) -> int | None:
    """A row that has the ends of another one."""
    pair = (columns["source"].astype(np.int64) << 32) | columns["target"].astype(np.int64)
    order = np.argsort(pair, kind="stable")
    same = np.flatnonzero(pair[order][1:] == pair[order][:-1])
    return int(order[same[0] + 1]) if len(same) else None


def data_of(graph: Any) -> GraphData:
    """Of a `torch_geometric.data.Data` or `HeteroData`. Raises ConfigError for what is neither."""
    if hasattr(graph, "node_types"):
        nodes = {name: graph[name] for name in graph.node_types}
        edges = {tuple(key): graph[key] for key in graph.edge_types}
    elif hasattr(graph, "edge_index"):
        nodes, edges = {NODE: graph}, {EDGE: graph}
    else:
        raise ConfigError(f"{type(graph).__name__} is no graph; valid: Data or HeteroData of torch_geometric")
    features = {}
    for name, node in nodes.items():
        if getattr(node, "x", None) is None:
            raise ConfigError(f"nodes of type {name!r} have no features `x`")
        features[name] = node.x.numpy()
    columns = {}
    for key, edge in edges.items():
        arrays = {
            name: getattr(edge, name) for name in ("edge_index", *_WORDS) if getattr(edge, name, None) is not None
        }
        columns[key] = _columns({name: values.numpy() for name, values in arrays.items()}, written(key))
    return GraphData(features, _all(features), columns)


def read_npz(path: str | Path) -> GraphData:
    """See the module's docstring. Raises ConfigError for a file that is not so."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as npz: {error}") from None
    features, edges = {}, {}
    by_type: dict[str, dict[str, NDArray[Any]]] = {}
    for name, values in arrays.items():
        what, _, type_ = name.partition("/")
        if what == "x":
            features[type_ or NODE] = values
        elif what in ("edge_index", *_WORDS):
            by_type.setdefault(type_ or written(EDGE), {})[what] = values
        else:
            raise ConfigError(f"{path}: nobody knows the array {name!r}; valid: x, edge_index, {', '.join(_WORDS)}")
    for type_, columns in by_type.items():
        edges[_key(type_, str(path))] = _columns(columns, f"{path}: {type_}")
    return GraphData(features, _all(features), edges)


def read_parquet(folder: str | Path) -> GraphData:
    """See the module's docstring. Raises ConfigError for files that are not so."""
    features, alive, edges = {}, {}, {}
    files = sorted(Path(folder).glob("*.parquet"))
    if not files:
        raise ConfigError(f"{folder}: there is no Parquet file")
    for file in files:
        what, _, type_ = file.name.removesuffix(".parquet").partition(".")
        columns = _parquet(file)
        if what == "nodes":
            name = type_ or NODE
            _needs(columns, ("id", "features"), file)
            ids, rows = columns["id"], columns["features"]
            if len(ids) and (int(ids.min()) < 0 or len(np.unique(ids)) < len(ids)):
                raise ConfigError(f"{file}: ids must be different and not negative")
            size = int(ids.max(initial=-1)) + 1
            features[name] = np.zeros((size, rows.shape[1]), rows.dtype)
            features[name][ids] = rows
            alive[name] = np.zeros(size, bool)
            alive[name][ids] = True
        elif what == "edges":
            _needs(columns, ("source", "target"), file)
            edges[_key(type_ or written(EDGE), str(file))] = columns
        else:
            raise ConfigError(f"{file}: a file must be called nodes or edges, with the type behind a dot")
    return GraphData(features, alive, edges)


def _parquet(file: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{file} cannot be read as Parquet: {error}") from None
    return {name: arrow_column(table.column(name).combine_chunks(), f"{file}: {name}") for name in table.column_names}


def _columns(arrays: dict[str, NDArray[Any]], where: str) -> Columns:
    index = arrays.get("edge_index")
    if index is None or index.ndim != 2 or index.shape[0] != 2 or index.dtype.kind not in "iu":
        raise ConfigError(f"{where}: `edge_index` must be whole numbers of shape [2, edges]")
    columns: Columns = {"source": index[0], "target": index[1]}
    for name, word in _WORDS.items():
        if name in arrays:
            values = arrays[name]
            columns[word] = values.reshape(len(values), -1) if word == "attributes" else values.reshape(-1)
    return columns


def _key(word: str, where: str) -> EdgeKey:
    parts = word.split(":")
    if len(parts) != 3:
        raise ConfigError(f"{where}: {word!r} is no edge type; valid: source:relation:target")
    return (parts[0], parts[1], parts[2])


def _needs(columns: Columns, names: tuple[str, ...], file: Path) -> None:
    if missing := [name for name in names if name not in columns]:
        raise ConfigError(f"{file}: there is no column {', '.join(missing)}; it has {', '.join(columns)}")


def _all(features: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
    return {name: np.ones(len(rows), bool) for name, rows in features.items()}
