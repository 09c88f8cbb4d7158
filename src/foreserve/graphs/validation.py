"""Whether a batch of changes fits a graph. It is refused whole, before anything has changed, with the place named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreserve.errors import BadRequest
from foreserve.graphs.changes import EDGE_KINDS, NODE_KINDS, Group
from foreserve.graphs.schema import EdgeKey, EdgeType, NodeType, Schema, edge_key, written
from foreserve.graphs.timeline import Timeline

MOST_CHANGES = 2**31 - 1

_COLUMNS = {
    "insert_nodes": {"id", "features"},
    "set_features": {"id", "features"},
    "delete_nodes": {"id"},
    "delete_edges": {"source", "target"},
    "expire_edges": {"until"},
}


def validate(groups: list[Group], schema: Schema, alive: Mapping[str, NDArray[np.bool_]]) -> dict[str, Timeline]:
    """The timelines of the nodes, by type. `alive` tells by type and id what is there. Raises BadRequest."""
    for group in groups:
        _shape(group, schema)
    if any(group.kind == "expire_edges" for group in groups) and len(groups) > 1:
        raise BadRequest("expire_edges must be alone in its batch")
    nodes = [group for group in groups if group.kind in NODE_KINDS]
    timelines = {name: Timeline.of([group for group in nodes if group.type == name]) for name in schema.nodes}
    for group in groups:
        if group.kind in NODE_KINDS:
            if group.kind != "insert_nodes":
                _known(group, "id", group.type, timelines, alive)
        elif group.kind != "expire_edges":
            source, _, target = key_of(group, schema)
            _known(group, "source", source, timelines, alive)
            _known(group, "target", target, timelines, alive)
    return timelines


def key_of(group: Group, schema: Schema) -> EdgeKey:
    """The edge type that a group names. Raises BadRequest."""
    key = edge_key(group.type, schema.edges)
    if key is None:
        valid = ", ".join(written(each) for each in schema.edges)
        raise BadRequest(f"{_place(group)}: there is no edge type {group.type!r}; valid: {valid}")
    return key


def _shape(group: Group, schema: Schema) -> None:
    """Columns, widths, ranges and numbers."""
    if group.kind in EDGE_KINDS:
        edge = schema.edges[key_of(group, schema)]
        needed = _edge_columns(edge) if group.kind == "insert_edges" else _COLUMNS[group.kind]
        optional = {"weight", "time"} & needed if group.kind == "insert_edges" else set()
        if group.kind == "expire_edges" and edge.expire_s is None:
            raise BadRequest(f"{_place(group)}: edges of this type have no time; set `expire_s` of the type")
    else:
        if group.type not in schema.nodes:
            valid = ", ".join(schema.nodes)
            raise BadRequest(f"{_place(group)}: there is no node type {group.type!r}; valid: {valid}")
        edge, needed, optional = None, _COLUMNS[group.kind], set()
    names = set(group.columns)
    if names - needed or needed - names - optional:
        words = f"has {', '.join(sorted(names))}; it takes {', '.join(sorted(needed))}"
        raise BadRequest(
            f"{_place(group)}: {words}" + (f", where {', '.join(sorted(optional))} may be left out" if optional else "")
        )
    for name, values in group.columns.items():
        if len(values) != len(group):
            raise BadRequest(f"{_place(group)}: {len(values)} rows of `{name}` for {len(group)} changes")
        if name in ("features", "attributes"):
            width = edge.attributes if edge is not None else schema.nodes[group.type].features
            if values.ndim != 2 or values.shape[1] != width:
                got = values.shape[1] if values.ndim == 2 else f"shape {list(values.shape)}"
                raise BadRequest(f"{_place(group)}: `{name}` has width {got}; {group.type} has {width}")
        elif values.ndim != 1:
            raise BadRequest(f"{_place(group)}: `{name}` must be a list of numbers")
        if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
            row = int(np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))[0])
            raise BadRequest(f"{_place(group, row)}: `{name}` is not finite")
    if group.kind in NODE_KINDS:
        _bounds(group, "id", schema.nodes[group.type])


def _edge_columns(edge: EdgeType) -> set[str]:
    columns = {"source", "target"}
    columns |= {"weight"} if edge.weighted else set()
    columns |= {"attributes"} if edge.attributes else set()
    return columns | ({"time"} if edge.expire_s is not None else set())


def _bounds(group: Group, column: str, node: NodeType) -> None:
    ids = group.columns[column]
    wrong = (ids < 0) | (ids >= node.most)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise BadRequest(f"{_place(group, row)}: id {ids[row]} is out of bounds; valid: 0 to {node.most - 1}")


def _known(group: Group, column: str, type_: str, timelines: Mapping[str, Timeline], alive: Mapping[str, Any]) -> None:
    ids = group.columns[column]
    there = timelines[type_].alive(alive[type_], ids, group.order)
    if not there.all():
        row = int(np.flatnonzero(~there)[0])
        raise BadRequest(f"{_place(group, row)}: there is no node {ids[row]} of type {type_!r}")


def _place(group: Group, row: int | None = None) -> str:
    at = "" if row is None else f"[{group.order[row]}]"
    return f"changes{at} ({group.kind} {group.type})"
