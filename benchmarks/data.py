"""Real prompts and traces where they are on this machine, and our own few where not.

The folder is `FORESERVE_DATA`, by default `../shared/data` beside the repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.common import ROOT, Report
from foreserve.loadgen import prompts as own
from foreserve.traces.files import lines


class Sample(msgspec.Struct, frozen=True):
    """A prompt, the answer that it had where the data came from, and its application where that is known."""

    prompt: str
    response: str | None = None
    app: str | None = None

    def as_prompt(self, max_tokens: int | None = None) -> own.Prompt:
        """For the load generator."""
        return own.Prompt(prompt=self.prompt, max_tokens=max_tokens)


def folder() -> Path:
    """Where the data should be; it may not exist."""
    return Path(os.environ.get("FORESERVE_DATA", ROOT.parent / "shared" / "data"))


def _sharegpt(row: dict[str, Any]) -> Sample:
    return Sample(row["prompt"], row["response"], "chat")


def _p3(row: dict[str, Any]) -> Sample:
    return Sample(row["prompt"], row["completion"], row["app"])


def _gsm8k(row: dict[str, Any]) -> Sample:
    return Sample(row["question"], row["answer"], "gsm8k")


def _mt_bench(row: dict[str, Any]) -> Sample:
    return Sample(row["turns"][0], None, row["category"])


SOURCES: dict[str, tuple[str, Callable[[dict[str, Any]], Sample]]] = {
    "sharegpt": ("prompts/sharegpt/sharegpt_first_turn_6000.jsonl.xz", _sharegpt),
    "p3": ("prompts/p3_t0/p3_t0_sample_300_per_app.jsonl.xz", _p3),
    "gsm8k": ("prompts/gsm8k/test.jsonl.xz", _gsm8k),
    "mt_bench": ("prompts/mt_bench/question.jsonl.xz", _mt_bench),
}
TRACES = {
    "azure_conv": "traces/azure_llm_2023/AzureLLMInferenceTrace_conv.csv.xz",
    "azure_code": "traces/azure_llm_2023/AzureLLMInferenceTrace_code.csv.xz",
}


def samples(source: str, count: int, report: Report, *, seed: int = 0, max_chars: int = 2000) -> list[Sample]:
    """`count` samples of a source, drawn without repetition with `seed`, none longer than `max_chars` characters.

    Without the data: our own prompts in turn, which `report` notes. Fewer than `count` come when a source has fewer.
    """
    path, parse = SOURCES[source]
    file = folder() / path
    if not file.exists():
        report.note(f"no {source} prompts here (FORESERVE_DATA): {count} requests use the built-in ones")
        mine = [Sample(prompt.as_text()) for prompt in own.built_in()]
        return [mine[index % len(mine)] for index in range(count)]
    rows = [parse(json.loads(text)) for _, text in lines(file)]
    rows = [row for row in rows if row.prompt.strip() and len(row.prompt) <= max_chars]
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    report.note(f"prompts: {source}, {len(order)} of {len(rows)} with at most {max_chars} characters, seed {seed}")
    return [rows[index] for index in order]


def trace(name: str) -> Path | None:
    """The file of a trace, for `foreserve.loadgen.arrivals.trace`; `None` when it is not here."""
    file = folder() / TRACES[name]
    return file if file.exists() else None
