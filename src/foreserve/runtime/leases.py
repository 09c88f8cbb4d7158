"""Weights that a worker's engine has declared, by name."""

from __future__ import annotations

from typing import Any

from foreserve.errors import EngineStartError


def get(name: str) -> Any:
    """The weights of this name, on their way. Raises EngineStartError for a name that was not declared."""
    raise EngineStartError(f"no weights are called {name!r}")
