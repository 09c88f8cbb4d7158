"""A graph as it was at one version, kept while it goes on changing: for a snapshot that nobody waits for.

What a commit is about to overwrite is put aside first, once for each row. The arrays are then copied while commits go
on, and what was put aside is laid over the copy: rows that nobody touched are right as they were copied, and the others
are those that were put aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from foreserve.graphs.adjacency import Columns, Ints, spans
from foreserve.graphs.schema import EdgeKey, Schema, written

if TYPE_CHECKING:
    from foreserve.graphs.adjacency import Adjacency
    from foreserve.graphs.store import GraphStore


class Kept:
    """One array as it was when this was made. An array of numpy, or a tensor."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self._saved = np.zeros(len(array), bool)
        self._aside: list[tuple[Ints, Any]] = []

    def before(self, array: Any, rows: Ints) -> None:
        """Rows of `array` are about to change. In the writer's thread; another array than this one is none of ours."""
        if array is not self._array:
            return
        new = rows[rows < len(self._saved)]
        new = np.unique(new[~self._saved[new]])
        if len(new):
            self._saved[new] = True
            self._aside.append((new, _taken(array, new)))

    def copy(self) -> NDArray[Any]:
        """While the array changes."""
        if isinstance(self._array, torch.Tensor):
            made: NDArray[Any] = self._array.detach().to("cpu", copy=True).numpy()
        else:
            made = self._array.copy()
        for rows, values in tuple(self._aside):
            made[rows] = values
        return made


def _taken(array: Any, rows: Ints) -> NDArray[Any]:
    if isinstance(array, torch.Tensor):
        taken: NDArray[Any] = array[torch.from_numpy(rows).to(array.device)].cpu().numpy()
        return taken
    made: NDArray[Any] = array[rows]
    return made


class KeptEdges:
    """The lists of one adjacency as they were; where each is takes 12 bytes a node and is copied at once."""

    def __init__(self, edges: Adjacency) -> None:
        self._start, self._length = edges.start.copy(), edges.length.astype(np.int64)
        self._columns = {name: Kept(values) for name, values in edges.columns.items()}

    def before(self, columns: Columns, slots: Ints) -> None:
        """These slots are about to be written."""
        for name, values in columns.items():
            self._columns[name].before(values, slots)

    def copy(self) -> Columns:
        """All edges: `source`, `target` and what they carry, target by target."""
        _, slots = spans(self._start, self._length)
        made = {name: kept.copy()[slots] for name, kept in self._columns.items()}
        owners = np.repeat(np.arange(len(self._length), dtype=np.int32), self._length)
        return {"source": made.pop("neighbour"), "target": owners, **made}


class Frozen:
    """All of a store as it is when this is made, between two commits; commits must tell what they overwrite."""

    def __init__(self, store: GraphStore) -> None:
        self.schema: Schema = store.schema
        self.version = store.version
        self._counts = {name: nodes.count for name, nodes in store.nodes.items()}
        self._alive = {name: nodes.alive[: nodes.count].copy() for name, nodes in store.nodes.items()}
        self.features = {name: Kept(nodes.features) for name, nodes in store.nodes.items()}
        self.edges: dict[EdgeKey, KeptEdges] = {key: KeptEdges(edges.into) for key, edges in store.edges.items()}

    def copy(self) -> dict[str, NDArray[Any]]:
        """The arrays by the names that a snapshot has for them. In any thread, while commits go on."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, kept in self.features.items():
            arrays[f"nodes/{name}/features"] = kept.copy()[: self._counts[name]]
            arrays[f"nodes/{name}/alive"] = self._alive[name]
        for key, edges in self.edges.items():
            for column, values in edges.copy().items():
                arrays[f"edges/{written(key)}/{column}"] = values
        return arrays
