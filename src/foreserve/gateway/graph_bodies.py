"""Changes of a graph as clients send them: JSON, a line of JSON for each, or columns of Arrow."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import numpy as np

from foreserve.errors import BadRequest
from foreserve.gateway.bodies import TermsBody
from foreserve.gateway.decoding import Decoder
from foreserve.graphs.arrow import arrow_stream
from foreserve.graphs.changes import Changes, Group, Kind
from foreserve.graphs.schema import EDGE, NODE, written

ARROW = "application/vnd.apache.arrow.stream"
NDJSON = "application/x-ndjson"


class _Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", kw_only=True):
    id: int
    type: str = NODE


class InsertNode(_Node, frozen=True, tag="insert_node"):
    """A new node; of one that is there the features are replaced."""

    features: list[float]


class SetFeatures(_Node, frozen=True, tag="set_features"):
    """Other features for a node that is there."""

    features: list[float]


class DeleteNode(_Node, frozen=True, tag="delete_node"):
    """A node with all its edges."""


class _Edge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", kw_only=True):
    source: int
    target: int
    type: str = written(EDGE)


class InsertEdge(_Edge, frozen=True, tag="insert_edge"):
    """An edge with what its type carries; `time` is in seconds since the epoch."""

    weight: float | None = None
    attributes: list[float] | None = None
    time: float | None = None


class DeleteEdge(_Edge, frozen=True, tag="delete_edge"):
    """One edge between two nodes, the oldest."""


Change = InsertNode | SetFeatures | DeleteNode | InsertEdge | DeleteEdge

_PLURAL: dict[str, Kind] = {
    "insert_node": "insert_nodes",
    "set_features": "set_features",
    "delete_node": "delete_nodes",
    "insert_edge": "insert_edges",
    "delete_edge": "delete_edges",
}
_OPTIONAL = ("features", "weight", "attributes", "time")


class UpdateBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`changes` made together, in their order. Of updates with the same `key` only the first is made."""

    changes: list[Change]
    key: str | None = None
    foreserve: TermsBody | None = None


class QueryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The outputs for `nodes` of a `type`. With `max_staleness_ms` no update older than that may be missing."""

    nodes: list[int]
    type: str = ""
    max_staleness_ms: float | None = None
    foreserve: TermsBody | None = None

    def __post_init__(self) -> None:
        if self.max_staleness_ms is not None and not self.max_staleness_ms >= 0:
            raise ValueError("`max_staleness_ms` must not be negative")


update_body = Decoder(UpdateBody)
query_body = Decoder(QueryBody)
_line: Decoder[Change] = Decoder(cast("type[Change]", Change))


def lines(raw: bytes) -> list[Change]:
    """Of a body with a change on each line. Raises BadRequest naming the line."""
    made: list[Change] = []
    for n, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            try:
                made.append(_line.decode(line))
            except BadRequest as error:
                raise BadRequest(f"line {n}: {error}", param=error.param) from None
    return made


def columns(changes: list[Change]) -> Changes:
    """Changes in their order as few arrays, those of one form together."""
    alike: dict[Any, tuple[list[int], list[Change]]] = {}
    for n, change in enumerate(changes):
        form = (type(change), change.type, *(_form(getattr(change, name, None)) for name in _OPTIONAL))
        order, members = alike.setdefault(form, ([], []))
        order.append(n)
        members.append(change)
    return Changes([_group(order, members) for order, members in alike.values()])


def _form(value: Any) -> Any:
    return len(value) if isinstance(value, list) else value is not None


def _group(order: list[int], members: list[Change]) -> Group:
    first = members[0]
    kind = _PLURAL[str(first.__struct_config__.tag)]
    names = ("id",) if isinstance(first, _Node) else ("source", "target")
    made: dict[str, Any] = {}
    for name in names:
        try:
            made[name] = np.array([getattr(each, name) for each in members], dtype=np.int64)
        except OverflowError:
            raise BadRequest(f"changes ({kind} {first.type}): an id is out of bounds") from None
    for name in _OPTIONAL:
        if getattr(first, name, None) is not None:
            made[name] = np.array([getattr(each, name) for each in members], dtype=np.float64)
    return Group(kind=kind, type=first.type, order=np.array(order, dtype=np.int64), columns=made)


def of_arrow(raw: bytes, op: str | None, type_: str | None) -> Changes:
    """Changes of one kind and type, a row of Arrow each. Raises BadRequest."""
    if op not in _PLURAL:
        raise BadRequest(f"`op` is {op!r}; an Arrow body is of one kind, named in the address: {', '.join(_PLURAL)}")
    kind = _PLURAL[op]
    made = arrow_stream(raw)
    count = len(next(iter(made.values()), ()))
    for name in ("id", "source", "target"):
        if name in made:
            if made[name].dtype.kind not in "iu":
                raise BadRequest(f"`{name}` must be whole numbers, not {made[name].dtype}")
            made[name] = made[name].astype(np.int64)
    default = written(EDGE) if kind in ("insert_edges", "delete_edges") else NODE
    group = Group(kind=kind, type=type_ or default, order=np.arange(count), columns=made)
    return Changes([group] if count else [])
