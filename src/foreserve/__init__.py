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
    from foreserve.pipelines.failing import default as default
    from foreserve.pipelines.flow import Flow as Flow
    from foreserve.pipelines.flow import join as join
    from foreserve.pipelines.flow import show as show
    from foreserve.pipelines.splitting import Splitter as Splitter
    from foreserve.pipelines.splitting import items as items
    from foreserve.pipelines.splitting import lines as lines
    from foreserve.pipelines.splitting import sentences as sentences
    from foreserve.pipelines.splitting import split_at as split_at
    from foreserve.pipelines.splitting import words as words
    from foreserve.pipelines.stage import stage as stage
    from foreserve.pipelines.stream import Stream as Stream
    from foreserve.pipelines.text import Text as Text
    from foreserve.services.encoder import Encoder as Encoder
    from foreserve.services.function import function as function
    from foreserve.services.graph import Graph as Graph
    from foreserve.services.llm import LLM as LLM
    from foreserve.services.pipeline import pipeline as pipeline
    from foreserve.services.pipeline_encoders import classify as classify
    from foreserve.services.pipeline_encoders import embed as embed
    from foreserve.services.pipeline_graphs import query as query
    from foreserve.services.pipeline_stages import ask as ask
    from foreserve.services.upstream import Upstream as Upstream

__version__ = "0.1.0"

_HOME = {
    "App": "foreserve.app",
    "Encoder": "foreserve.services.encoder",
    "File": "foreserve.calling",
    "Flow": "foreserve.pipelines.flow",
    "Graph": "foreserve.services.graph",
    "LLM": "foreserve.services.llm",
    "Splitter": "foreserve.pipelines.splitting",
    "Stream": "foreserve.pipelines.stream",
    "Text": "foreserve.pipelines.text",
    "Upstream": "foreserve.services.upstream",
    "Weights": "foreserve.engines.weights",
    "ask": "foreserve.services.pipeline_stages",
    "classify": "foreserve.services.pipeline_encoders",
    "default": "foreserve.pipelines.failing",
    "embed": "foreserve.services.pipeline_encoders",
    "function": "foreserve.services.function",
    "items": "foreserve.pipelines.splitting",
    "join": "foreserve.pipelines.flow",
    "lines": "foreserve.pipelines.splitting",
    "pipeline": "foreserve.services.pipeline",
    "query": "foreserve.services.pipeline_graphs",
    "sentences": "foreserve.pipelines.splitting",
    "show": "foreserve.pipelines.flow",
    "split_at": "foreserve.pipelines.splitting",
    "stage": "foreserve.pipelines.stage",
    "weights": "foreserve.engines.python_weights",
    "words": "foreserve.pipelines.splitting",
}

__all__ = [
    "LLM",
    "App",
    "Encoder",
    "File",
    "Flow",
    "Graph",
    "Splitter",
    "Stream",
    "Text",
    "Upstream",
    "Weights",
    "__version__",
    "ask",
    "classify",
    "default",
    "embed",
    "function",
    "items",
    "join",
    "lines",
    "pipeline",
    "query",
    "sentences",
    "show",
    "split_at",
    "stage",
    "weights",
    "words",
]


def __getattr__(name: str) -> Any:
    try:
        return getattr(import_module(_HOME[name]), name)
    except KeyError:
        raise AttributeError(f"module 'foreserve' has no attribute {name!r}") from None
