"""What a static engine takes: batches of so many rows, padded to their longest prompt."""

from __future__ import annotations

import itertools
from collections import defaultdict
from statistics import median
from typing import Final

import msgspec

from foreserve.simulation.calibrate_plan import Effort, Limits, Parts, Tell
from foreserve.simulation.probe import Probe

STEPS: Final = 10
"""Tokens of each answer."""


class Batches(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, as they came: to the first tokens of a batch by its rows and prompt tokens, and of a step of it."""

    prefill: dict[tuple[int, int], list[float]]
    decode: dict[tuple[int, int], list[float]]

    def by_tokens(self) -> dict[int, list[float]]:
        """Prefill by all tokens of a batch, rows times prompt: that is what it costs, about."""
        found: dict[int, list[float]] = defaultdict(list)
        for (rows, length), seconds in self.prefill.items():
            found[rows * length].append(median(seconds))
        return dict(sorted(found.items()))


async def measure(probe: Probe, limits: Limits, effort: Effort, tell: Tell) -> Batches:
    """Batches of each number of rows and prompt length, on an engine that has nothing else to do."""
    rows = limits.sequences()
    contexts = limits.contexts(effort.fine)
    lengths = sorted({*contexts, *(length for length in (64, 128, 256) if effort.fine and length < contexts[-1])})
    points = [(count, length) for length in lengths for count in rows]
    prefill: dict[tuple[int, int], list[float]] = defaultdict(list)
    decode: dict[tuple[int, int], list[float]] = defaultdict(list)
    await probe.ask(*[(16, 2)] * limits.slots)
    rounds = Parts(effort, tell).rounds("batches", "batches", least=2, most=20)
    while rounds.again():
        for count, length in points:
            asked = await probe.ask(*[(length, STEPS)] * count)
            prefill[count, length].append(max(each.first_s for each in asked))
            if length in contexts:
                times = asked[0].times
                decode[count, length] += [b - a for a, b in itertools.pairwise(times)]
    return Batches(prefill=prefill, decode=decode)
