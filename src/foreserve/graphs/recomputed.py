"""A model that cannot be taken apart, over a graph that changes: its own forward over all nodes, once a version."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from foreserve.errors import BadRequest
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import Answer, Applied
from foreserve.graphs.schema import Schema
from foreserve.graphs.store import GraphStore, Prepared, known
from foreserve.graphs.taking_apart import call_words, given_edges
from foreserve.graphs.update import Effort, Update


class RecomputedGraph:
    """As `LiveGraph`, for any model with such a `forward`. The first query of a version computes all nodes."""

    level: int | None = None

    def __init__(self, model: torch.nn.Module, store: GraphStore) -> None:
        self.store = store
        self._model = model.eval()
        self._lock = threading.Lock()
        self._rows: dict[str, Tensor] = {}
        self._version: int | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The node types that it may return something for."""
        return tuple(self.store.schema.nodes)

    def propagate(self, prepared: Prepared) -> Update:
        """Nothing is kept that a batch could change."""
        return Update()

    def commit(self, prepared: Prepared, update: Update) -> Applied:
        """Make a batch the next version."""
        with self._lock:
            self.store.commit(prepared)
        return Applied(self.store.version, prepared.ignored, Effort())

    def apply(self, changes: Changes, at: float = 0.0) -> Applied:
        """Prepare and commit. A batch that does not fit changes nothing."""
        return self.commit(self.store.prepare(changes, at), Update())

    def query(self, type_: str, ids: ArrayLike) -> Answer:
        """The model's output for these nodes, in their order. Raises BadRequest for a node that is not there."""
        asked = np.asarray(ids, dtype=np.int64)
        with self._lock:
            if self._version != self.store.version:
                self._rows, self._version = forward(self._model, self.store), self.store.version
            if type_ not in self._rows:
                raise BadRequest(
                    f"the model returns nothing for nodes of type {type_!r}; valid: {', '.join(self._rows)}"
                )
            there = known(self.store.nodes[type_].alive, asked)
            if not there.all():
                at = int(np.flatnonzero(~there)[0])
                raise BadRequest(f"nodes[{at}]: there is no node {asked[at]} of type {type_!r}")
            rows = self._rows[type_][torch.from_numpy(asked).to(self.store.device)]
            return Answer(self._version, rows, 0)

    def refresh(self) -> None:
        """Compute anew at the next query."""
        self._version = None

    def drift(self) -> float:
        """Nothing is kept that could drift."""
        return 0.0


def forward(model: torch.nn.Module, store: GraphStore) -> dict[str, Tensor]:
    """The model's own forward over the whole graph, by node type."""
    schema: Schema = store.schema
    given = {key: edges.columns() for key, edges in store.edges.items()}

    def tensors(name: str) -> dict[Any, Tensor]:
        return {key: torch.from_numpy(c[name]).to(store.device) for key, c in given.items() if name in c}

    index = {
        key: torch.from_numpy(np.stack((c["source"], c["target"])).astype(np.int64)).to(store.device)
        for key, c in given.items()
    }
    edges = given_edges(schema, index, tensors("weight"), tensors("attributes"))
    features = {name: nodes.features[: nodes.count] for name, nodes in store.nodes.items()}
    with torch.no_grad():
        made = model(**call_words(model, schema, features, edges, "the model"))
    return made if isinstance(made, dict) else {next(iter(schema.nodes)): made}
