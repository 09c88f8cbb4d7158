"""Stages that are graphs of the app: a model's outputs for some nodes, as the graph stands now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from foreserve.core import Request
from foreserve.errors import BadRequest, ConfigError
from foreserve.graphs.asked import Answered, Query
from foreserve.pipelines.failing import Failed, checked
from foreserve.pipelines.invoking import Invocation
from foreserve.pipelines.stage import Takes
from foreserve.services.base import Service
from foreserve.services.graph import Graph
from foreserve.services.pipeline_stages import ServiceStage
from foreserve.tensors import array, tensor_of


class Queries(ServiceStage):
    """A graph's outputs for nodes. Made by `query`."""

    kind = Graph

    def __init__(
        self,
        graph: Graph | str,
        type: str,
        max_staleness_ms: float | None,
        name: str,
        failed: Failed,
        attempts: int,
    ) -> None:
        self.ref = graph
        self.type = type
        self.max_staleness_ms = max_staleness_ms
        takes = (Takes("nodes", list[int], True),)
        super().__init__(self._answer, name, takes, list[list[float]], "task", failed=failed, attempts=attempts)
        self.__doc__ = "The model's outputs for nodes."

    def asked(self, request: Request, service: Service, values: Mapping[str, Any]) -> Request:
        """See `ServiceStage`."""
        nodes = values["nodes"]
        try:
            ids = np.asarray(nodes)
        except (OverflowError, TypeError, ValueError):
            ids = np.empty(0)
        # numpy takes true for 1 beside a whole number.
        mixed = not isinstance(nodes, np.ndarray) and ids.ndim == 1 and any(isinstance(each, bool) for each in nodes)
        if ids.dtype.kind not in "iu" or ids.ndim != 1 or not ids.size or mixed or ids.max() >= 2**63:
            raise BadRequest(
                f"stage {self.name!r}: `nodes` is {str(nodes)[:64]}; valid: a list of ids, whole numbers", param="nodes"
            )
        ids = ids.astype(np.int64)
        return msgspec.structs.replace(request, payload=Query(tensor_of(ids), self.type, self.max_staleness_ms))

    async def _answer(self, invocation: Invocation, *values: Any) -> Any:
        _, events = await self.answered(invocation, values)
        # What crossed a process is plain values; what did not is made of them in the same way.
        found = msgspec.convert(msgspec.to_builtins(events[0], builtin_types=(bytes,)), Answered)
        return array(found.rows).tolist()


def query(
    graph: Graph | str,
    /,
    *,
    type: str = "",
    max_staleness_ms: float | None = None,
    name: str = "query",
    failed: Failed = "fail",
    attempts: int = 2,
) -> Queries:
    """A stage: what `graph`, a graph of the app, has for a list of nodes of one `type`, a row of numbers for each.

    With `max_staleness_ms` it waits until no update that came longer ago is missing. Raises ConfigError.
    """
    where = f"query {name!r}"
    if not isinstance(graph, (Graph, str)):
        raise ConfigError(f"{where}: {graph.__class__.__name__} is no graph; valid: one of the app, or its name")
    if max_staleness_ms is not None and not max_staleness_ms >= 0:
        raise ConfigError(f"{where}: `max_staleness_ms` is {max_staleness_ms}; it must be at least 0")
    return Queries(graph, type, max_staleness_ms, name, checked(failed, where), attempts)
