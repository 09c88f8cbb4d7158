"""What a graph service is asked and what it answers, between gateway and worker."""

from __future__ import annotations

from typing import Any

import msgspec

from foreserve.tensors import Tensor


class Query(msgspec.Struct, frozen=True, tag="query", tag_field="asks"):
    """The model's outputs for nodes of one type (empty: the only one that it returns something for).

    With `max_staleness_ms` the answer waits until no update that came longer ago is missing from it.
    """

    ids: Tensor
    type: str = ""
    max_staleness_ms: float | None = None


class Update(msgspec.Struct, frozen=True, tag="update", tag_field="asks"):
    """`count` changes, as `Changes.encode` wrote them, made together and, of one `key`, once."""

    changes: bytes
    count: int
    key: str | None = None


class Ask(msgspec.Struct, frozen=True, tag="status", tag_field="asks"):
    """How the graph stands; `refresh` has all tables computed anew first."""

    refresh: bool = False


Asked = Query | Update | Ask


class Answered(msgspec.Struct, frozen=True):
    """A row for each node of a query, of one version, `staleness_ms` behind what had come by then."""

    version: int
    staleness_ms: float
    rows: Tensor


class Made(msgspec.Struct, frozen=True):
    """An update is visible in `version`. This call made `changes`: none where it had been made before, `again`."""

    version: int
    changes: int
    again: bool = False


class Standing(msgspec.Struct, frozen=True):
    """How a graph stands. Bytes are of its edges, of the kept rows and of the features."""

    version: int
    nodes: dict[str, int]
    edges: dict[str, int]
    layers: int
    level: int | None
    edge_bytes: int
    table_bytes: int
    feature_bytes: int
    waiting_updates: int
    staleness_ms: float
    totals: dict[str, Any]
    drift: float | None = None
    hot_rows: int = 0
    """Outputs that are kept since their nodes are asked for again and again, and how often one was found."""
    hot_hits: int = 0
