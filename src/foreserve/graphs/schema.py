"""What a graph is made of: its types of nodes and edges, and how wide their features are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import msgspec

from foreserve.errors import ConfigError

EdgeKey = tuple[str, str, str]
"""Type of the source, name of the relation, type of the target: as PyTorch Geometric writes it."""

NODE = "node"
EDGE: EdgeKey = (NODE, "to", NODE)
"""The one type of node and of edge of a homogeneous graph."""

MOST_NODES = 2**31 - 1
"""Of one type: ids are kept in 32 bits."""


class NodeType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`features` is the width of a node's feature row. No id reaches `most`."""

    features: int
    most: int = MOST_NODES


class EdgeType(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an edge carries: a weight, a row of `attributes` numbers, a time.

    With `multi` two nodes may have several edges of the type, and a delete removes the oldest; without, an insert of an
    edge that is there replaces its weight, attributes and time. An edge expires `expire_s` seconds after its time.
    """

    weighted: bool = False
    attributes: int = 0
    multi: bool = False
    expire_s: float | None = None


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The types of a graph, by name. Raises ConfigError where they do not fit together."""

    nodes: dict[str, NodeType]
    edges: dict[EdgeKey, EdgeType]

    def __post_init__(self) -> None:
        for name, node in self.nodes.items():
            if node.features < 1 or not 0 < node.most <= MOST_NODES:
                raise ConfigError(f"node type {name!r}: `features` must be at least 1, `most` from 1 to {MOST_NODES}")
        for key, edge in self.edges.items():
            where = f"edge type {written(key)!r}"
            for end in (key[0], key[2]):
                if end not in self.nodes:
                    raise ConfigError(f"{where}: there is no node type {end!r}; valid: {', '.join(self.nodes)}")
            if edge.attributes < 0 or (edge.expire_s is not None and not edge.expire_s > 0):
                raise ConfigError(f"{where}: `attributes` must not be negative, `expire_s` must be above 0")

    @classmethod
    def homogeneous(cls, features: int, edge: EdgeType | None = None, most: int = MOST_NODES) -> Self:
        """One type of node, `NODE`, and one of edge, `EDGE`."""
        return cls({NODE: NodeType(features, most)}, {EDGE: edge or EdgeType()})

    @property
    def is_homogeneous(self) -> bool:
        """Whether it is as `homogeneous` makes it: a model is then called with tensors, not dictionaries."""
        return [*self.nodes] == [NODE] and [*self.edges] == [EDGE]


def written(key: EdgeKey) -> str:
    """An edge type in one word, for messages, files and JSON: `user:buys:item`."""
    return ":".join(key)


def edge_key(word: str, edges: Mapping[EdgeKey, object]) -> EdgeKey | None:
    """The edge type that is written so: in full, or by its relation alone where only one has that."""
    found = [key for key in edges if word in (written(key), key[1])]
    exact = [key for key in found if written(key) == word]
    return exact[0] if exact else found[0] if len(found) == 1 else None
