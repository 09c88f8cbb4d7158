"""At which layer to cut: as early as a query may cost, since every layer kept up to date makes updates dearer.

An update of one more layer reaches the neighbours of those that it reached before; a query of one more reads theirs.
"""

from __future__ import annotations

import numpy as np

from foreserve.graphs.adjacency import Ints
from foreserve.graphs.program import Aggregate, Program
from foreserve.graphs.split import Split, split
from foreserve.graphs.store import GraphStore

SAMPLE = 256
QUANTILE = 0.99


def choose_level(program: Program, store: GraphStore, most_edges: int) -> int:
    """The lowest level at which 99 of 100 queries of one node read at most `most_edges` edges; all but the last layer
    where none does. Of a sample of the nodes that are there, spread evenly over their ids."""
    for level in range(program.depth):
        cut = split(program, level)
        read: list[int] = []
        for type_, output in program.outputs.items():
            alive = store.alive(type_)
            sample = alive[np.linspace(0, len(alive), min(SAMPLE, len(alive)), endpoint=False).astype(int)]
            read += [query_edges(cut, store, output, np.array([node])) for node in sample]
        if not read or np.quantile(read, QUANTILE) <= most_edges:
            return level
    return program.depth - 1


def query_edges(cut: Split, store: GraphStore, output: int, ids: Ints) -> int:
    """How many edges the inference phase reads for these nodes."""
    wanted: dict[int, Ints] = {output: ids}
    edges = 0
    for value in reversed(cut.asked):
        if value.id not in wanted:
            continue
        mine = wanted[value.id]
        sources = mine
        if isinstance(value.op, Aggregate):
            into = store.edges[value.op.key].into
            of, slots = into.entries(mine)
            neighbour = into.columns["neighbour"][slots].astype(np.int64)
            neighbour = neighbour if value.op.reduce.loops else neighbour[neighbour != mine[of]]
            edges += len(neighbour)
            sources = np.unique(neighbour)
            for each in value.op.targets:
                wanted[each] = np.union1d(wanted.get(each, mine), mine)
        for each in value.op.sources if isinstance(value.op, Aggregate) else value.inputs:
            wanted[each] = np.union1d(wanted.get(each, sources), sources)
    return edges
