"""Values of all nodes at once, in blocks: to begin with, to begin anew, and where a batch touches most of a layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from foreserve.graphs.edges import EdgeEdit
from foreserve.graphs.program import Aggregate, Local, Topology, Value
from foreserve.graphs.tables import Dirty, Rows, Tables

BLOCK_ROWS = 2**16


def aggregated(tables: Tables, value: Value, dirty: Dirty, edit: EdgeEdit | None = None) -> Tensor:
    """An aggregate of all nodes of its type, over the edges as they will be after `edit`."""
    op = value.op
    assert isinstance(op, Aggregate)
    values = tables.split.program.values
    edges = tables.store.edges[op.key]
    sources = [tables.whole(values[each], dirty) for each in op.sources]
    targets = [tables.whole(values[each], dirty) for each in op.targets]
    capacity = tables.store.nodes[value.type].capacity
    made = torch.zeros((capacity, *value.shape), dtype=tables.store.dtype, device=tables.device)
    changed = None if edit is None else np.union1d(edit.removed["target"], edit.inserted["target"])
    for owners, length, slots in edges.into.blocks():
        of = np.repeat(np.arange(len(owners)), length)
        columns = {name: values_[slots] for name, values_ in edges.into.columns.items() if name != "time"}
        if not op.reduce.loops:
            keep = columns["neighbour"] != owners[of]
            of, columns = of[keep], {name: each[keep] for name, each in columns.items()}
        rows = tables.index(owners)
        made[rows] = op.reduce(tables.edges(of, columns, len(owners)), sources, [each[rows] for each in targets])
    if changed is not None and len(changed):
        _, gathered = tables.gathered(edges, changed, op.reduce.loops, edit)
        rows = tables.index(changed)
        made[rows] = op.reduce(gathered, sources, [each[rows] for each in targets])
    return made


def compute(tables: Tables) -> Dirty:
    """Every kept value of every node, of the features and the edges alone. Changes nothing."""
    dirty: Dirty = {}
    every = {name: np.arange(nodes.capacity) for name, nodes in tables.store.nodes.items()}
    for value in tables.split.program.values:
        if isinstance(value.op, Topology) and value.id in tables.split.kept:
            dirty[value.id] = Rows(every[value.type], _topology(tables, value, value.op))
    for stage in tables.split.stages:
        for value in stage.aggregates:
            dirty[value.id] = Rows(every[value.type], aggregated(tables, value, dirty))
        for type_, steps in stage.locals.items():
            whole = {leaf.id: tables.whole(leaf, dirty) for leaf in stage.leaves[type_]}
            size = len(every[type_])
            made = {
                value.id: torch.empty((size, *value.shape), dtype=tables.store.dtype, device=tables.device)
                for value in stage.outputs[type_]
            }
            for at in range(0, size, BLOCK_ROWS):
                rows = {id_: each[at : at + BLOCK_ROWS] for id_, each in whole.items()}
                for value in steps:
                    assert isinstance(value.op, Local)
                    rows[value.id] = value.op(rows)
                for value in stage.outputs[type_]:
                    made[value.id][at : at + BLOCK_ROWS] = rows[value.id]
            dirty |= {id_: Rows(every[type_], each) for id_, each in made.items()}
    return dirty


def _topology(tables: Tables, value: Value, op: Topology) -> Tensor:
    edges = tables.store.edges[op.key]
    capacity = tables.store.nodes[value.type].capacity
    if op.what == "count" and op.loops:
        made = np.zeros(capacity)
        made[: len(edges.into.length)] = edges.into.length
        return torch.from_numpy(made).unsqueeze(1).to(tables.device)
    made = np.full(capacity, op.fill if op.what == "loop" else 0.0)
    for owners, length, slots in edges.into.blocks():
        of = np.repeat(owners, length)
        neighbour = edges.into.columns["neighbour"][slots]
        mine = neighbour == of if op.what == "loop" else (neighbour != of if not op.loops else np.ones(len(of), bool))
        terms = np.ones(int(mine.sum())) if op.what == "count" else edges.into.columns["weight"][slots[mine]]
        if op.what == "loop":
            made[of[mine]] = terms  # of several the last stays
        else:
            made[: owners[-1] + 1] += np.bincount(of[mine], terms, minlength=owners[-1] + 1)
    return torch.from_numpy(made).unsqueeze(1).to(tables.device)
