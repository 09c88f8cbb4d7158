"""The inference phase: outputs of the nodes of a query, computed from the kept tables through the last layers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from foreserve.graphs.adjacency import Ints
from foreserve.graphs.program import Aggregate, Gathered, Local, Value
from foreserve.graphs.tables import Tables


class Inferred(NamedTuple):
    """A row for each node that was asked for, and how many edges that took."""

    rows: Tensor
    edges: int


def infer(tables: Tables, output: int, ids: Ints) -> Inferred:
    """The rows of the value `output` for the nodes `ids`, which rise. Reads one state of the graph and the tables."""
    cut = tables.split
    values = cut.program.values
    if output in cut.kept:
        return Inferred(tables.rows(values[output], ids), 0)
    wanted: dict[int, list[Ints]] = {output: [ids]}
    nodes: dict[int, Ints] = {}
    read: dict[int, tuple[Ints, Gathered]] = {}
    edges = 0
    for value in reversed(cut.asked):
        if value.id not in wanted:
            continue
        mine = nodes[value.id] = _together(wanted[value.id])
        if isinstance(value.op, Aggregate):
            op = value.op
            neighbour, gathered = tables.gathered(tables.store.edges[op.key], mine, op.reduce.loops)
            edges += len(neighbour)
            if any(each not in cut.kept for each in op.sources):
                sources, place = np.unique(neighbour, return_inverse=True)
                gathered = gathered._replace(source=tables.index(place))
                read[value.id] = (sources, gathered)
                for each in op.sources:
                    wanted.setdefault(each, []).append(sources)
            else:
                read[value.id] = (neighbour, gathered)
            for each in op.targets:
                wanted.setdefault(each, []).append(mine)
        else:
            for each in value.inputs:
                wanted.setdefault(each, []).append(mine)
    made: dict[int, Tensor] = {}

    def rows(id_: int, at: Ints) -> Tensor:
        if id_ in cut.kept:
            return tables.rows(values[id_], at)
        if nodes[id_] is at or len(nodes[id_]) == len(at):
            return made[id_]
        return made[id_][tables.index(np.searchsorted(nodes[id_], at))]

    for value in cut.asked:
        if value.id not in nodes:
            continue
        mine = nodes[value.id]
        if isinstance(value.op, Aggregate):
            made[value.id] = _aggregate(tables, value, value.op, read[value.id], mine, rows)
        else:
            assert isinstance(value.op, Local)
            made[value.id] = value.op({each: rows(each, mine) for each in value.inputs})
    return Inferred(rows(output, ids), edges)


def _aggregate(
    tables: Tables, value: Value, op: Aggregate, read: tuple[Ints, Gathered], mine: Ints, rows: object
) -> Tensor:
    assert callable(rows)
    sources, gathered = read
    cut = tables.split
    if any(each not in cut.kept for each in op.sources):
        given = [rows(each, sources) for each in op.sources]
    else:
        # The whole tables serve as they are: the index of sources is that of all nodes.
        given = [tables.whole(cut.program.values[each], {}) for each in op.sources]
    made: Tensor = op.reduce(gathered, given, [rows(each, mine) for each in op.targets])
    return made


def _together(parts: list[Ints]) -> Ints:
    first = parts[0]
    if all(each is first for each in parts):
        return first
    return np.unique(np.concatenate(parts))
