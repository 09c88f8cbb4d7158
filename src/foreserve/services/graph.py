"""The graph kind: a graph neural network that is kept up to date while its graph changes.

    app = foreserve.App(fraud=foreserve.Graph(FraudNet, weights="fraud.safetensors", graph="data/", log="log/"))

Updates go in their order to the one replica that writes, which has room for `writes`; queries go to any.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from foreserve.core import Chunk, EngineInfo, EngineSpec, Outcome, Price, Request, Work
from foreserve.errors import ConfigError
from foreserve.graphs.asked import Query, Update
from foreserve.parsing import parse
from foreserve.ports import Decoded
from foreserve.registry import entry
from foreserve.services.function_target import check_target, file_of
from foreserve.settings import GraphSettings

_IMPORTS = ("torch", "torch_geometric.nn", "foreserve.graphs.engine")


class Graph:
    """Serves `model`, a class of torch modules or `"file.py:Name"` of one. Other words: those of `GraphSettings`."""

    name = "graph"
    idempotent = True
    policy = "fcfs"

    def __init__(self, model: type[Any] | str, /, **words: Any) -> None:
        self._setup(parse({"target": _target(model), **words}, GraphSettings, "Graph(...)"), "Graph(...)")

    @classmethod
    def from_settings(cls, settings: GraphSettings, where: str) -> Graph:
        """As an app file in YAML makes it; `where` is named in errors."""
        made = cls.__new__(cls)
        made._setup(settings, where)
        return made

    def _setup(self, settings: GraphSettings, where: str) -> None:
        self.settings = settings
        self._where = where

    def check(self) -> None:
        """Whether its file, its weights and its data are there. Runs none of it. Raises ConfigError."""
        check_target(self.settings.target, self._where)
        for name in ("weights", "graph"):
            place = getattr(self.settings, name)
            if place is not None and (name == "weights" or ":" not in place) and not Path(self._path(place)).exists():
                raise ConfigError(f"{self._where}: {name}: {self._path(place)} is not there")

    def prepare(self, progress: Callable[[float, str], None] | None = None) -> None:
        """Nothing is made beforehand; what is not there is seen now rather than in a worker."""
        self.check()

    def options(self) -> dict[str, Any]:
        """What a worker makes its graph of, as plain values. Relative paths are seen from the model's own file."""
        settings = self.settings
        edges = {
            word: {name: value for name, value in msgspec.to_builtins(edge).items() if value is not None}
            for word, edge in settings.edges.items()
        }
        return {
            "target": settings.target,
            "options": settings.options,
            "weights": None if settings.weights is None else self._path(settings.weights),
            "graph": None if settings.graph is None else self._path(settings.graph),
            "nodes": msgspec.to_builtins(settings.nodes),
            "edges": edges,
            "log": None if settings.log is None else self._path(settings.log),
            "durable": settings.durability == "durable",
            "mode": settings.mode,
            "level": settings.level,
            "query_edges": settings.query_edges,
            "hot_bytes": settings.hot_bytes,
            "device": settings.device,
            "threads": settings.threads,
        }

    def _path(self, place: str) -> str:
        head, colon, _ = place.rpartition(":")
        if colon and not head.endswith(".py"):
            return place  # a module's name
        path = Path(place).expanduser()
        file = file_of(self.settings.target)
        return str(path if path.is_absolute() or file is None else file.parent / path)

    # --- the kind

    def engines(self) -> list[EngineSpec]:
        """The first one writes, the others follow its log."""
        settings = self.settings
        factory = entry("engine", "graph", f"{self._where}: engine").value
        batches = {"batch_changes": settings.batch_changes, "batch_wait_s": settings.batch_wait_s}
        return [
            EngineSpec(
                factory=factory,
                options={**self.options(), **batches, "follow": n > 0},
                python=settings.python,
                env=settings.env,
                start_limit_s=settings.start_limit_s,
                liveness_s=settings.liveness_s,
                imports=_IMPORTS,
            )
            for n in range(settings.bounds[1])
        ]

    def price(self, request: Request) -> Price:
        """An update is never run again by itself: whether it was made only the log knows."""
        if isinstance(request.payload, Query):
            return Price(cost={"slots": 1.0})
        return Price(cost={"slots": 1.0, "writes": 1.0}, idempotent=not isinstance(request.payload, Update))

    def settled(self, outcome: Outcome) -> None:
        """Nothing is learned."""

    def ready(self, info: EngineInfo) -> None:
        """Nothing is asked beforehand that only a worker knows."""

    def decoder(self, work: Work) -> _One:
        return _One()

    def events_bound(self, payload: Any) -> int:
        return 1


class _One:
    """One answer."""

    def feed(self, chunk: Chunk) -> Decoded:
        return Decoded() if chunk.data is None else Decoded(events=(chunk.data,))

    def usage(self) -> dict[str, float]:
        return {"items": 1.0}


def _target(model: type[Any] | str) -> str:
    if isinstance(model, str):
        return model
    if not inspect.isclass(model):
        raise ConfigError(
            f"Graph(...): {type(model).__name__} is no class; valid: a class of torch modules, or its name"
        )
    if "<" in model.__qualname__:
        raise ConfigError(
            f"Graph(...): a worker must find {model.__qualname__} by name; define it at the top of its file"
        )
    return f"{Path(inspect.getfile(model)).resolve()}:{model.__qualname__}"
