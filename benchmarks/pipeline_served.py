"""The app that the fact checker's sides are measured against: one model, one encoder, the pipeline in both forms."""

from __future__ import annotations

import os
from typing import Any, cast

import numpy as np

import foreserve as fs
from benchmarks.pipeline_app import fact_checker, passages

chat = fs.LLM(
    "smollm2",
    max_running=16,
    exact=os.environ.get("EXACT") == "1",
    policy="earliest_root",
    queue={"max_waiting": 100_000, "max_wait_s": 3600.0},
)


@fs.function(batch=16, start_limit_s=300, liveness_s=300)
class Meaning:
    """How near each passage is to a query by meaning."""

    def __init__(self) -> None:
        from foreserve.foresight.length_encoder import MiniLM
        from foreserve.models.catalog import locate

        self.minilm = MiniLM(locate("minilm", "benchmarks/pipeline_served.py").path)
        self.passages = self.minilm.inputs(passages).astype(np.float32)

    def __call__(self, query: list[str]) -> list[list[float]]:
        """A list of numbers for each query."""
        found: list[list[float]] = (self.minilm.inputs(query) @ self.passages.T).tolist()
        return found


MODELS = dict.fromkeys(("answer", "extract", "ask_for", "appraise"), chat)

app = fs.App(
    chat=chat,
    meaning=cast(Any, Meaning),  # the decorator has made a service of the class
    checked=fact_checker(MODELS, Meaning),
    checked_whole=fact_checker(MODELS, Meaning, streaming=False),
    state={"history": False},
)
