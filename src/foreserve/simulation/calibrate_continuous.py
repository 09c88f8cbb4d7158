"""What a step of a continuous engine takes, seen from outside: by the times at which its tokens come."""

from __future__ import annotations

import itertools
from collections import defaultdict
from statistics import median
from typing import Final

import msgspec

from foreserve.simulation import fit
from foreserve.simulation.calibrate_decode import SAME_S, measure_decode
from foreserve.simulation.calibrate_plan import Effort, Limits, Parts, Tell
from foreserve.simulation.probe import Asked, Probe

CACHED: Final = 0.6
"""A prompt that is asked again in less than this share of its first time has been found in the prefix cache."""


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, each measured several times, as they came.

    `overhead`: what a first token takes longer than the step that makes it. `change`: what a step takes longer when
    another number decodes than in the one before.
    `alone`: to the first token of a prompt of so many tokens, on an idle engine. `after`: the same after context that
    was there already. `long`: of prompts that take several steps. `decode`: a step of so many sequences of so much
    context. `mixed`: of steps that did both: prompt tokens, seconds of the step, and of its decode alone.
    """

    overhead: list[float]
    change: list[float]
    alone: dict[int, list[float]]
    after: dict[tuple[int, int], list[float]]
    long: dict[int, list[float]]
    decode: dict[tuple[int, int], list[float]]
    mixed: list[tuple[int, float, float]]
    cached: bool


async def measure(probe: Probe, limits: Limits, effort: Effort, tell: Tell) -> Steps:
    """All of it, on an engine that has nothing else to do."""
    parts = Parts(effort, tell)
    overhead = await _overhead(probe)
    alone = await _prefill(probe, limits, effort, parts)
    cached = await _cached(probe, limits)
    after = await _after(probe, limits, effort, parts) if cached else {}
    long = await _long(probe, limits, effort, parts) if not cached and limits.budget is not None else {}
    decode, change = await measure_decode(probe, limits, effort, parts)
    mixed = await _mixed(probe, limits, parts) if limits.budget is not None and limits.slots > 1 else []
    return Steps(
        overhead=overhead,
        change=change,
        alone=alone,
        after=after,
        long=long,
        decode=decode,
        mixed=mixed,
        cached=cached,
    )


async def _overhead(probe: Probe) -> list[float]:
    """Of prompts of one token: their first step computes what each of the next ones does, so the rest is the way."""
    found = []
    for _ in range(12):
        (one,) = await probe.ask((1, 4))
        found.append(max(0.0, one.first_s - median(b - a for a, b in itertools.pairwise(one.times))))
    return found[2:]


async def _prefill(probe: Probe, limits: Limits, effort: Effort, parts: Parts) -> dict[int, list[float]]:
    points = limits.prefill_tokens(effort.fine)
    found: dict[int, list[float]] = {tokens: [] for tokens in points}
    for tokens in points:  # an engine sets things up for a length when it first sees it
        await probe.ask((tokens, 1))
    rounds = parts.rounds("prefill", "prefill", least=3, most=40)
    while rounds.again():
        for tokens in points:
            found[tokens].append((await probe.ask((tokens, 1)))[0].first_s)
    return found


async def _cached(probe: Probe, limits: Limits) -> bool:
    """Whether a prompt that comes again is computed again."""
    length = min(1024, limits.context // 2)
    first, again = [], []
    for _ in range(3):
        prompt = probe.prompt(length)
        first.append((await probe.ask((prompt, 1)))[0].first_s)
        again.append((await probe.ask((prompt, 1)))[0].first_s)
    return median(again) < CACHED * median(first)


async def _after(probe: Probe, limits: Limits, effort: Effort, parts: Parts) -> dict[tuple[int, int], list[float]]:
    """After what the prefix cache holds: only the rest of the prompt is computed."""
    tokens, befores = limits.prefill_tokens(effort.fine), limits.before_tokens(effort.fine)
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    if not befores:
        return found
    tails = [length for length in {*tokens[::2], tokens[-1]} if length + befores[-1] < limits.context]
    tails.sort()
    bases = {before: probe.prompt(before) for before in befores}
    for base in bases.values():
        # One more than its blocks: engines compute at least one token of a prompt, and keep whole blocks only.
        await probe.ask((base + probe.prompt(1), 1))
        for length in tails:
            await probe.ask((base + probe.prompt(length), 1))
    rounds = parts.rounds("context", "prefill after context", least=2, most=20)
    while rounds.again():
        for before, base in bases.items():
            for length in tails:
                found[length, before].append((await probe.ask((base + probe.prompt(length), 1)))[0].first_s)
    return found


async def _long(probe: Probe, limits: Limits, effort: Effort, parts: Parts) -> dict[int, list[float]]:
    """Prompts of several whole steps, where no cache lets a single later one be seen."""
    assert limits.budget is not None
    lengths = [before + limits.budget for before in limits.before_tokens(effort.fine)]
    rounds = parts.rounds("context", "prefill of long prompts", least=2, most=20)
    found: dict[int, list[float]] = {length: [] for length in lengths}
    while rounds.again():
        for length in lengths:
            found[length].append((await probe.ask((length, 1)))[0].first_s)
    return found


async def _mixed(probe: Probe, limits: Limits, parts: Parts) -> list[tuple[int, float, float]]:
    """Prompts that come while others decode: the step that computes one is the gap before its first token.

    Nothing where there is no room for it: where a step is full of those that decode, or the KV cache of them.
    """
    assert limits.budget is not None
    found: list[tuple[int, float, float]] = []
    tokens = [length for length in limits.prefill_tokens(True)[2:] if length + limits.slots <= limits.budget]
    if not tokens:
        return found
    wanted = 20 * len(tokens) + 20
    numbers = dict.fromkeys((limits.slots - 1, *(limits.slots >> at for at in range(1, limits.slots.bit_length()))))
    asks: dict[int, int] = {}
    for sequences in numbers:
        steps = limits.steps_to_begin(sequences, _LITTLE)
        room = limits.room(sequences, beside=tokens[-1]) - _LITTLE
        if steps is not None and steps + _LEAST * len(tokens) <= room and len(asks) < 2:
            asks[sequences] = min(steps + wanted, room)
    rounds = parts.rounds("mixing", "prefill beside decode", least=1, most=10)
    while asks and rounds.again():
        for sequences, answer in sorted(asks.items()):
            others = probe.send(*[(_LITTLE, answer)] * sequences)
            await probe.begin(others)
            new = [(length, await _beside(probe, others, length)) for length in tokens]
            await probe.stop(others)
            found += mixed_steps(others[0].times, max(each.times[0] for each in others), new)
    return found


_LITTLE: Final = 32
_LEAST: Final = 8
"""Steps that others must have for each prompt that comes beside them."""


def mixed_steps(times: list[float], begun: float, new: list[tuple[int, float]]) -> list[tuple[int, float, float]]:
    """Of the times of one that decodes, and the first tokens of prompts (tokens, when): see `Steps.mixed`.

    Until all had `begun` steps held prompts of the others. The step after that, as the one after a mixed one, computes
    another number of tokens again: neither says anything of decode alone.
    """
    steps = [b - a for a, b in itertools.pairwise(times)]
    at = {length: _step_of(first, times) for length, first in new if times and first < times[-1]}
    other = {index + after for index in at.values() for after in (0, 1)}
    plain = [s for index, s in enumerate(steps) if index not in other and times[index] > begun + SAME_S]
    return [(length, steps[index], median(plain)) for length, index in at.items() if index >= 0 and plain]


def _step_of(first: float, times: list[float]) -> int:
    """Which gap between tokens ends as a first token came; -1: none."""
    return max((at - 1 for at, time in enumerate(times) if time <= first + SAME_S), default=-1)


async def _beside(probe: Probe, others: list[Asked], length: int) -> float:
    """When the first token of a prompt came that was sent between two steps, after a few that only decoded."""
    await probe.more(others[0], 3)
    (one,) = await probe.ask((length, 1))
    return one.times[0]


def prefill_cells(steps: Steps, limits: Limits, beside_s: float) -> dict[tuple[int, int], float]:
    """Seconds of a step by (prompt tokens, context before): what was measured less `beside_s`, which is not the step's.

    Each prompt was of another length than the one before it, so the change of size is part of `beside_s`.
    """
    alone = {tokens: max(0.0, s - beside_s) for tokens, s in fit.medians(steps.alone).items()}
    cells = {(tokens, 0): seconds for tokens, seconds in alone.items()}
    cells |= {at: max(0.0, s - beside_s) for at, s in fit.medians(steps.after).items()}
    if steps.long and limits.budget is not None:
        budget, whole = limits.budget, alone[max(alone)]
        # Of each prompt: what its steps took more than so many first ones, for each pair of tokens that met.
        pairs, extra = [], []
        for length, seconds in fit.medians(steps.long).items():
            count = length // budget
            pairs.append(float(budget * budget * count * (count - 1) // 2))
            extra.append(seconds - beside_s - count * whole)
        slope = max(0.0, sum(p * e for p, e in zip(pairs, extra, strict=True)) / sum(p * p for p in pairs))
        for length in steps.long:
            before = length - budget
            cells |= {(tokens, before): s + slope * tokens * before for tokens, s in alone.items()}
    return cells
