"""Wasted memory access: what a static batch reads of the KV cache for nothing, and the memory that it needs.

A static batch pads every prompt to its longest and runs until its longest answer ends. Magnus (arXiv 2406.04785) counts
what that wastes in token reads of the KV cache. Lengths are in tokens, and a batch's are the longest of its requests:
`L` of its prompts, `G` of its (predicted) answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Shape(NamedTuple):
    """A request's prompt and answer, or the longest of a batch; `input` is at least 0 and `output` at least 1."""

    input: int
    output: int


def longest(shapes: Iterable[Shape]) -> Shape:
    """The shape of a batch: the longest prompt and the longest answer, seldom of one request. Needs at least one."""
    inputs, outputs = zip(*shapes, strict=True)
    return Shape(max(inputs), max(outputs))


def waste_padding(request: Shape, batch: Shape) -> int:
    """Token reads of padding over the request's own steps: `G(p) * (L - L(p))`."""
    return request.output * (batch.input - request.input)


def waste_waiting(request: Shape, batch: Shape) -> int:
    """Token reads of a request that has ended until its batch does: the sum of `g + L` for g from `G(p)` to `G - 1`.

    In closed form `n * L + n * (G(p) + G - 1) / 2` with `n = G - G(p)`, always a whole number.
    """
    steps = batch.output - request.output
    return steps * batch.input + steps * (request.output + batch.output - 1) // 2


def waste(request: Shape, batch: Shape) -> int:
    """All that the batch reads for nothing on behalf of one of its requests. Falls as either of its lengths grows."""
    return waste_padding(request, batch) + waste_waiting(request, batch)


def batch_waste(shapes: Iterable[Shape]) -> int:
    """The waste of the worst-served request, so that a bound on it holds for batches of any size. Needs at least one.

    0 only when all have the same shape; never less when one more joins.
    """
    every = list(shapes)
    batch = longest(every)
    return max(waste(shape, batch) for shape in every)


def memory_tokens(rows: int, batch: Shape) -> int:
    """KV cache of a static batch at its end, in tokens, padding included: `rows * (L + G)`."""
    return rows * (batch.input + batch.output)
