"""A whole graph in one file, from which the log goes on.

`SEQUENCE.safetensors` holds the graph as it is after that entry of the log: `nodes/TYPE/features`, `nodes/TYPE/alive`,
and `edges/TYPE/source`, `/target` and what the type carries, target by target, copies of an edge oldest first. The
metadata has `format`, `schema`, `sequence`, the idempotency `keys` with the sequence numbers that they got, and
`crc32`, the checksum of each array.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from foreserve.graphs.frozen import Frozen
from foreserve.graphs.log import LogBroken, sync_folder
from foreserve.graphs.schema import EdgeKey, EdgeType, NodeType, Schema, written
from foreserve.graphs.store import GraphStore

FORMAT = "foreserve-graph-snapshot 1"


class Snapshot(NamedTuple):
    """Copies of all arrays of a graph, and what goes with them."""

    schema: Schema
    sequence: int
    keys: dict[str, int]
    arrays: dict[str, NDArray[Any]]


class _Words(msgspec.Struct):
    nodes: dict[str, NodeType]
    edges: dict[str, EdgeType]


def take(store: GraphStore, keys: dict[str, int]) -> Snapshot:
    """The graph as it is: nothing may be committed meanwhile, anything afterwards."""
    return Snapshot(store.schema, store.version, dict(keys), Frozen(store).copy())


def write(snapshot: Snapshot, folder: Path) -> Path:
    """Bring it to the disk, whole or not at all."""
    path = folder / f"{snapshot.sequence:020d}.safetensors"
    making = path.with_suffix(".making")
    arrays = {name: np.ascontiguousarray(values) for name, values in snapshot.arrays.items()}
    schema = _Words(snapshot.schema.nodes, {written(key): edge for key, edge in snapshot.schema.edges.items()})
    metadata = {
        "format": FORMAT,
        "sequence": str(snapshot.sequence),
        "schema": msgspec.json.encode(schema).decode(),
        "keys": msgspec.json.encode(snapshot.keys).decode(),
        "crc32": msgspec.json.encode({name: zlib.crc32(values.data) for name, values in arrays.items()}).decode(),
    }
    try:
        save_file(arrays, making, metadata)
        fd = os.open(making, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        making.rename(path)
    except BaseException:
        making.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return path


def sweep(folder: Path) -> None:
    """Take away what a crash left of snapshots; for the one writer, while it writes none."""
    for path in folder.glob("*.making"):
        path.unlink(missing_ok=True)


def read(path: Path) -> Snapshot:
    """What `write` wrote. Raises LogBroken, naming the file, for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            words = file.metadata() or {}
            if words.get("format") != FORMAT:
                raise LogBroken(
                    f"{path} is no snapshot of a graph: its format is {words.get('format')!r}, not {FORMAT!r}"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sums = msgspec.json.decode(words["crc32"], type=dict[str, int])
        schema = msgspec.json.decode(words["schema"], type=_Words)
        keys = msgspec.json.decode(words["keys"], type=dict[str, int])
        sequence = int(words["sequence"])
    except (OSError, SafetensorError, msgspec.MsgspecError, KeyError, ValueError) as error:
        raise LogBroken(f"{path} cannot be read as a snapshot: {error}") from None
    for name, values in arrays.items():
        if zlib.crc32(np.ascontiguousarray(values).data) != sums.get(name):
            raise LogBroken(f"{path}: the array {name!r} is not what was written")
    edges: dict[EdgeKey, EdgeType] = {_key(word): edge for word, edge in schema.edges.items()}
    return Snapshot(Schema(schema.nodes, edges), sequence, keys, arrays)


def _key(word: str) -> EdgeKey:
    source, relation, target = word.split(":")
    return (source, relation, target)


def restore(snapshot: Snapshot, store: GraphStore, where: str) -> None:
    """Put it into an empty store. Raises LogBroken where the schemas differ in what arrays there are."""
    mine, theirs = _forms(store.schema), _forms(snapshot.schema)
    if mine != theirs:
        raise LogBroken(f"{where} holds a graph of another schema: {theirs}; the service has {mine}")
    features = {name: snapshot.arrays[f"nodes/{name}/features"] for name in store.nodes}
    alive = {name: snapshot.arrays[f"nodes/{name}/alive"] for name in store.nodes}
    edges = {}
    for key in store.edges:
        head = f"edges/{written(key)}/"
        edges[key] = {n.removeprefix(head): v for n, v in snapshot.arrays.items() if n.startswith(head)}
    store.load(features, edges, alive)
    store.version = snapshot.sequence


def _forms(schema: Schema) -> dict[str, Any]:
    """What must be alike for the arrays to fit; how long edges live may change."""
    forms: dict[str, Any] = {name: node.features for name, node in schema.nodes.items()}
    for key, edge in schema.edges.items():
        forms[written(key)] = (edge.weighted, edge.attributes, edge.multi, edge.expire_s is not None)
    return forms


def newest(folder: Path) -> Path | None:
    """The latest snapshot of a folder."""
    return max((path for path in folder.glob("*.safetensors") if path.stem.isdigit()), default=None)
