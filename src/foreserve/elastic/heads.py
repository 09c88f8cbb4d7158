"""From encoded tokens to answers: pooled vectors, and the heads and prompts of tasks, gathered row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foreserve.elastic.encoder import Encoded
from foreserve.elastic.payload import TaskFacts
from foreserve.errors import EngineStartError

FILE = "task.safetensors"


def pooled(encoded: Encoded, how: str) -> Tensor:
    """One vector for each input, `[B, D]`, in float32 at least."""
    if how == "cls":
        found = encoded.first
    elif how == "mean":
        found = encoded.mean()
    else:
        found = encoded.tokens.masked_fill(encoded.sizes[..., None] == 0, -torch.inf).amax(dim=1)
    return found if found.dtype == torch.double else found.float()


class Head(NamedTuple):
    """A linear layer, `[classes, D]` and `[classes]`."""

    weight: Tensor
    bias: Tensor


class Task:
    """A task's weights. A head of its own for each number of prompts, since each was trained with one."""

    def __init__(self, facts: TaskFacts, tensors: Mapping[str, Tensor]) -> None:
        self.facts = facts
        self._heads = {p: Head(tensors[f"head.{p}.weight"], tensors[f"head.{p}.bias"]) for p in (0, *facts.prompts)}
        self._prompts = {p: tensors[f"prompts.{p}"] for p in facts.prompts}

    @classmethod
    def load(cls, folder: Path, facts: TaskFacts) -> Task:
        """Raises EngineStartError where the file is broken."""
        try:
            return cls(facts, load_file(folder / FILE))
        except (OSError, SafetensorError, KeyError) as error:
            raise EngineStartError(f"{folder / FILE}: cannot be used: {error}") from None

    def head(self, p: int) -> Head:
        """The one that goes with so many prompts."""
        return self._heads.get(p, self._heads[0])

    def prompts(self, p: int) -> Tensor:
        """`[depth, p, D]`. Raises KeyError where it was trained with no such number."""
        return self._prompts[p]


def gathered(tasks: Sequence[Task], p: int) -> Tensor:
    """The prompts of each row's task, `[B, depth, p, D]`. Raises ValueError where they differ in depth."""
    distinct = {id(task): task for task in tasks}
    stacked = torch.stack([task.prompts(p) for task in distinct.values()])
    places = {key: at for at, key in enumerate(distinct)}
    return stacked[torch.tensor([places[id(task)] for task in tasks])]


def answered(vectors: Tensor, tasks: Sequence[Task | None], p: int) -> list[Tensor]:
    """Each row's answer: its task's probabilities, or the vector where it has none. One product for each task."""
    found: list[Tensor] = [*vectors]
    rows: dict[int, list[int]] = {}
    for row, task in enumerate(tasks):
        if task is not None:
            rows.setdefault(id(task), []).append(row)
    for own in rows.values():
        task = tasks[own[0]]
        assert task is not None
        weight, bias = (each.to(vectors.dtype) for each in task.head(p))
        for row, scores in zip(own, (vectors[own] @ weight.T + bias).softmax(dim=1), strict=True):
            found[row] = scores
    return found
