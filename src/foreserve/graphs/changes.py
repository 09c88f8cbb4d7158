"""Changes of a graph, in columns: what a client sends, the log keeps and the store applies.

A batch is a list of groups. A group holds changes of one kind to one type, with the place of each in the whole
sequence, so that a stream that mixes kinds becomes a few arrays. Later changes win over earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from foreserve.errors import BadRequest
from foreserve.graphs.schema import EdgeKey, written
from foreserve.tensors import Tensor, array, tensor_of

Kind = Literal["insert_nodes", "set_features", "delete_nodes", "insert_edges", "delete_edges", "expire_edges"]
KINDS: tuple[Kind, ...] = get_args(Kind)

NODE_KINDS = ("insert_nodes", "set_features", "delete_nodes")
EDGE_KINDS = ("insert_edges", "delete_edges", "expire_edges")


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of one `kind` to the node type, or the edge type as one word, `type`.

    `order` is the place of each in the batch. Columns: `id` and `features` of nodes; `source`, `target`, `weight`,
    `attributes` and `time` of edges; `until` of an expiry, which takes out every edge with a time up to it.
    """

    kind: Kind
    type: str
    order: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.order)


class Changes:
    """A batch that grows by the calls of its methods, each of which returns it. Arrays are copied on entry."""

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self.groups = list(groups)
        self._next = sum(len(group) for group in self.groups)

    def __len__(self) -> int:
        return self._next

    def insert_nodes(self, type_: str, ids: ArrayLike, features: ArrayLike) -> Changes:
        """New nodes; of one that is there the features are replaced. `features` has a row for each id."""
        return self._add("insert_nodes", type_, {"id": _ints(ids), "features": _floats(features)})

    def set_features(self, type_: str, ids: ArrayLike, features: ArrayLike) -> Changes:
        """Other features for nodes that are there."""
        return self._add("set_features", type_, {"id": _ints(ids), "features": _floats(features)})

    def delete_nodes(self, type_: str, ids: ArrayLike) -> Changes:
        """Nodes with all their edges."""
        return self._add("delete_nodes", type_, {"id": _ints(ids)})

    def insert_edges(
        self,
        type_: EdgeKey,
        source: ArrayLike,
        target: ArrayLike,
        weight: ArrayLike | None = None,
        attributes: ArrayLike | None = None,
        time: ArrayLike | None = None,
    ) -> Changes:
        """Edges with what their type carries; `time` is in seconds since the epoch."""
        more = {"weight": weight, "attributes": attributes, "time": time}
        columns = {"source": _ints(source), "target": _ints(target)}
        return self._add(
            "insert_edges", written(type_), columns | {k: _floats(v) for k, v in more.items() if v is not None}
        )

    def delete_edges(self, type_: EdgeKey, source: ArrayLike, target: ArrayLike) -> Changes:
        """One edge between each pair, the oldest. Where there is none nothing is done."""
        return self._add("delete_edges", written(type_), {"source": _ints(source), "target": _ints(target)})

    def expire_edges(self, type_: EdgeKey, until: float) -> Changes:
        """All edges whose time is at most `until`. Such a batch holds nothing else."""
        return self._add("expire_edges", written(type_), {"until": np.array([until], np.float64)})

    @classmethod
    def joined(cls, batches: Sequence[Changes]) -> Changes:
        """One after the other as one batch, with what is alike in few groups."""
        alike: dict[Any, list[tuple[int, Group]]] = {}
        at = 0
        for batch in batches:
            for group in batch.groups:
                form = tuple(sorted((name, values.shape[1:]) for name, values in group.columns.items()))
                alike.setdefault((group.kind, group.type, form), []).append((at, group))
            at += len(batch)
        return cls([_merged(parts) for parts in alike.values()])

    def _add(self, kind: Kind, type_: str, columns: dict[str, NDArray[Any]]) -> Changes:
        count = len(next(iter(columns.values())))
        for name, values in columns.items():
            if len(values) != count:
                raise BadRequest(f"{kind} {type_}: {len(values)} rows of `{name}` for {count} changes")
        order = np.arange(self._next, self._next + count)
        self.groups.append(Group(kind=kind, type=type_, order=order, columns=columns))
        self._next += count
        return self

    # --- as bytes

    def encode(self) -> bytes:
        """MessagePack of the groups, each column as raw little-endian elements."""
        packed = [
            _Packed(
                group.kind, group.type, {n: tensor_of(c) for n, c in ({"order": group.order} | group.columns).items()}
            )
            for group in self.groups
        ]
        return msgspec.msgpack.encode(packed)

    @classmethod
    def decode(cls, data: bytes) -> Changes:
        """The opposite of `encode`. Raises BadRequest for what is none."""
        try:
            packed = msgspec.msgpack.decode(data, type=list[_Packed])
            columns = [{name: array(each) for name, each in group.columns.items()} for group in packed]
            groups = [
                Group(kind=group.kind, type=group.type, order=arrays.pop("order"), columns=arrays)
                for group, arrays in zip(packed, columns, strict=True)
            ]
        except (msgspec.MsgspecError, ValueError, KeyError) as error:
            raise BadRequest(f"these bytes are no changes of a graph: {error}") from None
        return cls(groups)


def _merged(parts: list[tuple[int, Group]]) -> Group:
    first = parts[0][1]
    return Group(
        kind=first.kind,
        type=first.type,
        order=np.concatenate([group.order + at for at, group in parts]),
        columns={name: np.concatenate([group.columns[name] for _, group in parts]) for name in first.columns},
    )


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    kind: Kind
    type: str
    columns: dict[str, Tensor]


def _ints(values: ArrayLike) -> NDArray[np.int64]:
    made = np.array(np.asarray(values))
    if made.size == 0:
        made = made.astype(np.int64)
    if made.ndim != 1 or made.dtype.kind not in "iu":
        raise BadRequest(f"ids must be a list of whole numbers, not {made.dtype} of shape {list(made.shape)}")
    return made.astype(np.int64)


def _floats(values: ArrayLike) -> NDArray[np.float64] | NDArray[np.float32]:
    try:
        made = np.array(np.asarray(values))
    except ValueError:
        raise BadRequest("rows of features must all have the same width") from None
    if made.dtype.kind not in "fiub":
        raise BadRequest(f"features, weights and times must be numbers, not {made.dtype}")
    return made if made.dtype in (np.float32, np.float64) else made.astype(np.float64)
