"""Foreserve serves models with foresight.

The names below are all that an app file needs. They are imported on first use, because a worker process imports this
package too and shall load nothing but its engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreserve.app import App as App
    from foreserve.calling import File as File
    from foreserve.engines.python_weights import weights as weights
    from foreserve.engines.weights import Weights as Weights
    from foreserve.services.function import function as function
    from foreserve.services.llm import LLM as LLM
    from foreserve.services.upstream import Upstream as Upstream

__version__ = "0.1.0"

_HOME = {
    "App": "foreserve.app",
    "File": "foreserve.calling",
    "LLM": "foreserve.services.llm",
    "Upstream": "foreserve.services.upstream",
    "Weights": "foreserve.engines.weights",
    "function": "foreserve.services.function",
    "weights": "foreserve.engines.python_weights",
}

__all__ = ["LLM", "App", "File", "Upstream", "Weights", "__version__", "function", "weights"]


def __getattr__(name: str) -> Any:
    try:
        return getattr(import_module(_HOME[name]), name)
    except KeyError:
        raise AttributeError(f"module 'foreserve' has no attribute {name!r}") from None
