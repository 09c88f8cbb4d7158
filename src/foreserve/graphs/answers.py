"""Queries that are answered together, and how a graph stands: what is read of it, in the reader's thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from foreserve.errors import BadRequest
from foreserve.graphs.asked import Query, Standing
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.recomputed import RecomputedGraph
from foreserve.graphs.schema import written
from foreserve.graphs.writer import Totals
from foreserve.tensors import array

Graph = LiveGraph | RecomputedGraph
Result = tuple[int, Tensor] | Exception
"""The version and the rows of a query, or what it is refused for."""


def answers(graph: Graph, queries: Sequence[Query]) -> list[Result]:
    """One pass for each node type, or one for each query where one of them is wrong. In the order of the queries."""
    results: list[Result] = [BadRequest("nothing was asked")] * len(queries)
    by_type: dict[str, list[int]] = {}
    for n, query in enumerate(queries):
        by_type.setdefault(query.type, []).append(n)
    for type_, members in by_type.items():
        ids = [np.asarray(array(queries[n].ids)) for n in members]
        try:
            version, rows = _rows(graph, type_, np.concatenate(ids))
            ends = np.cumsum([len(each) for each in ids])
            for n, end, each in zip(members, ends, ids, strict=True):
                results[n] = (version, rows[end - len(each) : end])
        except Exception as error:
            for n, each in zip(members, ids, strict=True):
                results[n] = error if len(members) == 1 else _alone(graph, type_, each)
    return results


def _alone(graph: Graph, type_: str, ids: Any) -> Result:
    try:
        return _rows(graph, type_, ids)
    except Exception as error:
        return error


def _rows(graph: Graph, type_: str, ids: Any) -> tuple[int, Tensor]:
    answer = graph.query(type_ or next(iter(graph.outputs), ""), ids)
    return answer.version, answer.rows.cpu()


def standing(graph: Graph, totals: Totals | None, waiting: int, staleness_s: float, drift: float | None) -> Standing:
    """How a graph stands; `totals` are the writer's, `waiting` the updates that are not visible yet."""
    store = graph.store
    tables = graph.tables if isinstance(graph, LiveGraph) else None
    hot = list(graph.hot.values()) if isinstance(graph, LiveGraph) else []
    return Standing(
        version=store.version,
        nodes={name: int(nodes.alive.sum()) for name, nodes in store.nodes.items()},
        edges={written(key): len(edges) for key, edges in store.edges.items()},
        layers=graph.program.depth if isinstance(graph, LiveGraph) else 0,
        level=graph.level,
        edge_bytes=store.nbytes,
        table_bytes=0 if tables is None else tables.nbytes,
        feature_bytes=sum(nodes.features.nbytes for nodes in store.nodes.values()),
        waiting_updates=waiting,
        staleness_ms=1000 * staleness_s,
        totals={} if totals is None else msgspec.to_builtins(totals),
        drift=drift,
        hot_rows=sum(len(rows) for rows in hot),
        hot_hits=sum(rows.hits for rows in hot),
    )
