"""The aggregates: sums, which can be changed term by term, and those that are computed anew where a term changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, leaky_relu

from foreserve.graphs.program import Gathered


def summed(rows: Tensor, index: Tensor, offsets: Tensor, weight: Tensor | None) -> Tensor:
    """Sums of `rows[index]`, times `weight`: one for each range of the index that begins at an offset."""
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    if not len(index) or not len(flat):
        return rows.new_zeros((len(offsets), *rows.shape[1:]))
    made = embedding_bag(index, flat, offsets, mode="sum", per_sample_weights=weight)
    return made.reshape(len(offsets), *rows.shape[1:])


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of the sources' rows, each times its edge's weight if `weighted`."""

    weighted: bool = False
    loops: bool = True
    additive: ClassVar[bool] = True

    def __call__(self, edges: Gathered, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        return summed(sources[0], edges.source, edges.offsets, edges.weight if self.weighted else None)


@dataclass(frozen=True, slots=True)
class Extreme:
    """The largest or smallest element by column; 0 for a node that no edge leads to."""

    which: Literal["amax", "amin"]
    weighted: bool = False
    loops: bool = True
    additive: ClassVar[bool] = False

    def __call__(self, edges: Gathered, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        rows = sources[0][edges.source]
        if self.weighted and edges.weight is not None:
            rows = rows * edges.weight.unsqueeze(1)
        made = rows.new_zeros((len(edges.offsets), *rows.shape[1:]))
        index = edges.segment.reshape(-1, *(1 for _ in rows.shape[1:])).expand_as(rows)
        return made.scatter_reduce_(0, index, rows, self.which, include_self=False)


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention over in-neighbours (GAT, arXiv:1710.10903).

    Sources bring rows [heads, width] and scores [heads], targets their own scores and, if a node attends to itself,
    the rows and scores that it has as a source. `edge_score` is a matrix that makes scores of attributes, which an edge
    to itself has as the mean of the others.
    """

    negative_slope: float
    with_self: bool
    edge_score: Tensor | None = None
    additive: ClassVar[bool] = False

    @property
    def loops(self) -> bool:
        return not self.with_self

    def __call__(self, edges: Gathered, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        rows, score = sources[0][edges.source], sources[1][edges.source]
        segment, own = edges.segment, targets[0]
        extra = None
        if self.edge_score is not None:
            assert edges.attributes is not None, "the schema says that these edges have attributes"
            extra = edges.attributes @ self.edge_score
            score = score + extra
        if self.with_self:
            mine = targets[2]
            if extra is not None:
                count = torch.bincount(segment, minlength=len(own)).clamp(min=1).unsqueeze(1)
                mine = mine + torch.zeros_like(own).index_add_(0, segment, extra) / count
            rows, score = torch.cat((rows, targets[1])), torch.cat((score, mine))
            segment = torch.cat((segment, torch.arange(len(own), device=segment.device)))
        score = leaky_relu(score + own[segment], self.negative_slope)
        index = segment.unsqueeze(1).expand_as(score)
        top = torch.full_like(own, -torch.inf).scatter_reduce_(0, index, score, "amax")
        weight = (score - top[segment]).exp()
        total = torch.zeros_like(own).index_add_(0, segment, weight)
        made = rows.new_zeros((len(own), *rows.shape[1:])).index_add_(0, segment, rows * weight.unsqueeze(-1))
        return made / (total + 1e-16).unsqueeze(-1)
