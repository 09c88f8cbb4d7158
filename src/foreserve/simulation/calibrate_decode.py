"""What a decode step takes by how many decode and how much they hold: runs that begin with many and end with one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Final

from foreserve.simulation import fit
from foreserve.simulation.calibrate_plan import Effort, Limits, Parts
from foreserve.simulation.probe import Asked, Probe

LEVEL_STEPS: Final = 9
"""Steps that are watched of each number of sequences, in one run; the first of them pays for the change."""

LEAST_STEPS: Final = 3

SAME_S: Final = 0.0005
"""Tokens of one step come at most this far apart."""


async def measure_decode(
    probe: Probe, limits: Limits, effort: Effort, parts: Parts
) -> tuple[dict[tuple[int, int], list[float]], list[float]]:
    """Seconds of steps by (sequences, context), and what the first step of each number took longer than the others.

    Numbers of sequences for which there is no room are left out.
    """
    found: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    change: list[float] = []
    runs = [(context, run) for context in limits.contexts(effort.fine) for run in plan(limits, context)]
    rounds = parts.rounds("decode", "decode", least=2, most=20)
    while runs and rounds.again():
        for context, run in runs:
            asked = await probe.ask(*((context, tokens) for tokens in run))
            for running, (first, *rest) in levels(asked).items():
                found[running, context] += rest
                if running < len(run) and len(rest) > 1:
                    change.append(first[1] - median(seconds for _, seconds in rest))
    wanted = set(limits.sequences())
    return _at_their_context({at: steps for at, steps in found.items() if at[0] in wanted}), change


def plan(limits: Limits, context: int) -> list[list[int]]:
    """Runs over all numbers of sequences that have room: the tokens of each answer, all asked for at once.

    All of a run decode together for some steps, then the next smaller number for some, and so on, as far as there is
    context left; what is smaller still gets a run of its own.
    """
    runs: list[list[int]] = []
    left = limits.sequences()
    while left:
        top = left.pop()
        made = limits.steps_to_begin(top, context)
        if made is None or (steps := min(LEVEL_STEPS, limits.room(top) - context - made)) < LEAST_STEPS:
            continue
        made += steps
        run: list[int] = []
        running = top
        while left and (steps := min(LEVEL_STEPS, limits.room(left[-1]) - context - made)) >= LEAST_STEPS:
            run += [made] * (running - left[-1])
            running = left.pop()
            made += steps
        runs.append(run + [made] * running)
    return runs


def levels(asked: Sequence[Asked]) -> dict[int, list[tuple[int, float]]]:
    """The steps by how many decoded, in order, once all of them had begun: context of each, and seconds.

    All were asked with prompts of one length, and have come as far as the longest, but for the start.
    """
    longest = max(asked, key=lambda each: each.times[-1])
    times = longest.times
    last_first = max(each.times[0] for each in asked)
    found: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for made, (a, b) in enumerate(itertools.pairwise(times), 1):
        if a >= last_first - SAME_S:
            running = sum(each.decoding((a + b) / 2) for each in asked)
            found[running].append((longest.prompt_tokens + made, b - a))
    return found


def _at_their_context(found: dict[tuple[int, int], list[tuple[int, float]]]) -> dict[tuple[int, int], list[float]]:
    """As if each step had had just the context that it was asked with: answers grow while they are watched."""
    points = [(running, held, seconds) for (running, _), steps in found.items() for held, seconds in steps]
    slope = fit.context_slope(points)
    return {
        (running, context): [max(0.0, seconds - slope * running * (held - context)) for held, seconds in steps]
        for (running, context), steps in found.items()
        if steps
    }
