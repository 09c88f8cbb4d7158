"""What a device needs for each token setting, size and length; and how near merged embeddings are to plain ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import torch
from torch import Tensor

from foreserve import clock
from foreserve.elastic.profile import Grid, Profile

MOST_TOKENS = 1024
"""Of one measured pass; what is larger is taken to need time in proportion."""

REPEATS = 5

Forward = Callable[[str, int, int], Awaitable[object]]
"""Runs one pass: setting, size, length."""


def steps(most: int, first: int, times: int) -> tuple[int, ...]:
    """From `first` on, each `times` the last, to `most`, which is one of them."""
    found = []
    value = first
    while value < most:
        found.append(value)
        value *= times
    return (*found, most)


Weigh = Callable[[str, int, int], Awaitable[int]]
"""The same, and tells the bytes that it took beside the weights."""


async def measured(
    forward: Forward,
    settings: Sequence[str],
    sizes: tuple[int, ...],
    lengths: tuple[int, ...],
    within_s: float,
    weigh: Weigh | None = None,
) -> Profile:
    """A profile of this device. Each cell is measured at least once; again, up to `REPEATS` times, `within_s` seconds.

    What is kept of each cell is the longest pass but for the first, which also gets memory ready, where there is time
    for more than that one.
    """
    began = clock.precise()
    share = within_s / (len(settings) * len(sizes) * len(lengths))
    seconds: dict[str, Grid] = {}
    held: dict[str, Grid] = {}
    for setting in settings:
        rows, weights = [], []
        for size in sizes:
            row, weighed = [], []
            for length in lengths:
                least = max(1, min(size, MOST_TOKENS // length))
                start = clock.precise()
                passes: list[float] = []
                while not passes or (len(passes) <= REPEATS and clock.precise() < start + share):
                    at = clock.precise()
                    await forward(setting, least, length)
                    passes.append(clock.precise() - at)
                row.append(max(passes[1:] or passes) * size / least)
                if weigh is not None:
                    weighed.append(max(1.0, await weigh(setting, least, length) * size / least))
            rows.append(tuple(row))
            weights.append(tuple(weighed))
        seconds[setting] = tuple(rows)
        if weigh is not None:
            held[setting] = tuple(weights)
    device = f"{torch.get_num_threads()} threads" if not torch.cuda.is_available() else torch.cuda.get_device_name()
    told = f"{device}, {clock.precise() - began:.1f} s of measuring"
    return Profile(sizes=sizes, lengths=lengths, seconds=seconds, bytes=held, device=told)


def fidelity(vectors: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean cosine between each setting's vectors `[n, D]` and those of `plain`, 0 to 1."""
    plain = vectors["plain"]
    return {
        setting: float(torch.cosine_similarity(found, plain, dim=1).mean().clamp(0, 1))
        for setting, found in vectors.items()
    }
