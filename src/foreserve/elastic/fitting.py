"""Parts of adapting: batches of inputs about as long, a head by regression, and which settings are worth having."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from foreserve.elastic.labelled import Labelled

WARM_UP = 0.1
"""The share of steps in which the learning rate rises."""


def batches(data: Labelled, size: int, seed: tuple[int, ...] | None) -> Iterator[list[int]]:
    """Places of inputs that are about as long, `size` at a time: in a drawn order, or without a seed by length."""
    lengths = [len(payload.ids) for payload in data.payloads]
    if seed is None:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        yield from (order[at : at + size] for at in range(0, len(order), size))
        return
    draw = torch.Generator().manual_seed(hash(seed) % 2**63)
    order = torch.randperm(len(lengths), generator=draw).tolist()
    pool = 16 * size
    found = []
    for at in range(0, len(order), pool):
        near = sorted(order[at : at + pool], key=lengths.__getitem__)
        found += [near[each : each + size] for each in range(0, len(near), size)]
    yield from (found[at] for at in torch.randperm(len(found), generator=draw).tolist())


def undominated(accuracy: Mapping[str, float], cost: Mapping[str, int]) -> list[str]:
    """Settings that none is both no dearer than and at least as accurate as, from cheap to dear."""
    kept: list[str] = []
    for setting in sorted(cost, key=lambda each: (cost[each], -accuracy[each])):
        if not kept or accuracy[setting] > accuracy[kept[-1]]:
            kept.append(setting)
    return kept


def pace(step: int, steps: int) -> float:
    """A rise over the first tenth, then a cosine to nothing."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def fitted(features: Tensor, truth: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Logistic regression, on features brought to one scale; the scale is then put into the weights."""
    middle, spread = features.mean(0), features.std(0).clamp(min=1e-6)
    scaled = (features - middle) / spread
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = cross_entropy(scaled @ weight.T + bias, truth) + decay * weight.square().sum()
        torch.autograd.backward(found)
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    own = weight.detach() / spread
    return own, bias.detach() - own @ middle
