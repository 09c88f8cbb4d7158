"""Measures one engine of a service and makes its profile: starts, steps and memory of the engine itself.

The engine is started by its launcher with the service's own settings and asked by messages, so what is measured is what
serves; nothing of ours is between but the connection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Final

import numpy as np
from msgspec.structs import replace

from foreserve.clock import wall
from foreserve.core import EngineInfo, EngineSpec
from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable
from foreserve.errors import EngineStartError
from foreserve.loadgen.arrivals import generator
from foreserve.ports import Launcher
from foreserve.simulation import calibrate_continuous as continuous
from foreserve.simulation import calibrate_static as static
from foreserve.simulation import fit
from foreserve.simulation.calibrate_plan import Effort, Limits, Tell
from foreserve.simulation.machine import machine
from foreserve.simulation.probe import Probe
from foreserve.simulation.probe_engine import EngineProbe

SEED: Final = 20_11_26
STARTING: Final = 0.1
"""The share of the bar for the starts."""

MOVED: Final = 0.05
"""Smoothing that changes a figure by more than this share is told."""

BUSY: Final = 0.5
"""Load average; where more goes on beside, figures are not the engine's alone."""

NO_CHANGE: Final = 0.03
"""A change of a step's size that costs less than this share of the shortest step is noise."""

DEFAULT_BLOCK: Final = 16
"""Tokens of a KV block, where the engine does not tell."""


async def calibrate(
    launcher: Launcher,
    spec: EngineSpec,
    vocabulary: int,
    effort: Effort,
    *,
    name: str = "",
    tell: Tell = lambda done, what: None,
    ready: Callable[[EngineInfo], None] = lambda info: None,
) -> EngineProfile:
    """Start the engine, measure it, end it. Raises EngineStartError when it does not start or fails on the way.

    `vocabulary` is how many token ids its model has. `ready` hears what the engine says of itself.
    """
    starts: list[float] = []
    busy = os.getloadavg()[0]
    for at in range(effort.starts):
        tell(STARTING * at / effort.starts, f"start {at + 1} of {effort.starts}")
        async with EngineProbe(launcher, spec, generator(SEED + at), vocabulary) as probe:
            starts.append(probe.start_s)
            if at < effort.starts - 1:
                continue
            ready(probe.info)
            await _warm_up(probe)
            limits = Limits.of(probe.info)

            def told(done: float, what: str) -> None:
                tell(STARTING + (1.0 - STARTING) * done, what)

            if probe.info.batching == "static":
                profile = _of_batches(probe.info, limits, await static.measure(probe, limits, effort, told))
            else:
                profile = of_steps(probe.info, limits, await continuous.measure(probe, limits, effort, told))
            memory = probe.memory_bytes()
    tell(1.0, "done")
    if busy > BUSY:
        words = f"the machine was busy with something else when this began (load average {busy:.1f}): measure it again"
        profile = replace(profile, notes=[words, *profile.notes])
    return complete(profile, name=name, starts=starts, memory=memory)


async def _warm_up(probe: Probe) -> None:
    """What is set up late is not to be measured."""
    for _ in range(3):
        await probe.ask((32, 4))


def of_steps(info: EngineInfo, limits: Limits, steps: continuous.Steps) -> EngineProfile:
    """The profile of a continuous engine, as far as its steps tell."""
    notes: list[str] = []
    sequences = limits.sequences()
    contexts = sorted({context for _, context in steps.decode})
    if not contexts:
        raise EngineStartError(
            f"the engine has no room to be measured: a context of {limits.context} tokens, {limits.kv_tokens} of KV"
        )
    seen = sorted(count for count, context in steps.decode if context == contexts[0])
    if unseen := [count for count in sequences if count not in seen]:
        notes.append(
            f"decode: there was no room to measure {', '.join(map(str, unseen))} together; they lie on straight lines"
        )
    decode = _table(fit.medians(steps.decode), sequences, contexts, "decode", notes)
    overhead_s = float(median(steps.overhead))
    change_s, unsure = fit.added(steps.change, NO_CHANGE * decode[0][0])
    notes += [unsure] if unsure else []
    cells = continuous.prefill_cells(steps, limits, overhead_s + change_s)
    tokens = sorted({length for length, _ in cells})
    before = sorted({context for _, context in cells})
    prefill = _table(cells, tokens, before, "prefill", notes)
    mixing = 1.0
    points: list[tuple[float, float, float]] = []
    if steps.mixed:
        alone = {length: prefill[row][0] for row, length in enumerate(tokens)}
        points = [(both - change_s, _between(alone, length), beside) for length, both, beside in steps.mixed]
        mixing, unsure = fit.share_added(points)
        notes += [unsure] if unsure else []
    elif limits.budget is not None and limits.slots > 1:
        notes.append("there was no room for a prompt beside others that decode: `mixing` is assumed to be 1")
    spread = {
        "overhead_s": _ends(steps.overhead),
        f"prefill of {tokens[-1]}": _ends([max(0.0, s - overhead_s - change_s) for s in steps.alone[tokens[-1]]]),
        f"decode of {seen[0]}": _ends(steps.decode[seen[0], contexts[0]]),
        f"decode of {seen[-1]}": _ends(steps.decode[seen[-1], contexts[0]]),
    }
    if steps.change:
        spread["change_s"] = _ends(steps.change)
    if points:
        spread["mixing"] = _ends([(both - prefilled) / beside for both, prefilled, beside in points])
    caching = bool(info.facts.get("prefix_caching", steps.cached))
    if caching != steps.cached:
        notes.append(f"the engine says prefix_caching is {caching}; a repeated prompt was measured as {steps.cached}")
    if limits.budget is None and limits.slots > 1:
        notes.append("the engine names no token budget of a step: prompts are taken to be computed whole")
    return EngineProfile(
        batching="continuous",
        slots=limits.slots,
        kv_tokens=limits.kv_tokens,
        context_tokens=limits.context,
        prefill=PrefillTable(tokens=tokens, before=before, seconds=prefill),
        decode=DecodeTable(sequences=sequences, context=contexts, seconds=decode),
        max_batched_tokens=limits.budget,
        mixing=mixing,
        change_s=change_s,
        block_tokens=_block(info, notes),
        prefix_caching=steps.cached,
        overhead_s=overhead_s,
        spread=spread,
        notes=notes,
    )


def _of_batches(info: EngineInfo, limits: Limits, batches: static.Batches) -> EngineProfile:
    notes: list[str] = []
    rows = limits.sequences()
    contexts = sorted({context for _, context in batches.decode})
    decode = _table(fit.medians(batches.decode), rows, contexts, "decode", notes)
    by_tokens = {(tokens, 0): float(median(each)) for tokens, each in batches.by_tokens().items()}
    tokens = [length for length, _ in by_tokens]
    prefill = _table(by_tokens, tokens, [0], "prefill", notes)
    return EngineProfile(
        batching="static",
        slots=limits.slots,
        kv_tokens=limits.kv_tokens,
        context_tokens=limits.context,
        prefill=PrefillTable(tokens=tokens, before=[0], seconds=prefill),
        decode=DecodeTable(sequences=rows, context=contexts, seconds=decode),
        block_tokens=1,
        spread={f"decode of {rows[-1]}": _ends(batches.decode[rows[-1], contexts[0]])},
        notes=[*notes, "a batch's prefill is by its rows times its longest prompt; the way there and back is in it"],
    )


def complete(profile: EngineProfile, *, name: str, starts: Sequence[float], memory: int) -> EngineProfile:
    """With what is known of the engine as a whole: seconds of each start, bytes of memory."""
    spread = dict(profile.spread)
    if len(starts) > 1:
        spread["start_s"] = _ends(starts)
    return replace(
        profile,
        name=name,
        machine=machine(),
        measured=datetime.fromtimestamp(wall(), UTC).date().isoformat(),
        start_s=float(median(starts)),
        host_bytes=memory,
        spread=spread,
    )


def _table(
    cells: Mapping[tuple[int, int], float], rows: Sequence[int], columns: Sequence[int], what: str, notes: list[str]
) -> list[list[float]]:
    """Filled and in order, with a note on what was not measured as it stands."""
    table, missing = fit.filled(cells, rows, columns)
    ordered = fit.monotone(table)
    if missing:
        notes.append(f"{what}: {len(missing)} of {len(rows) * len(columns)} cells follow from the others")
    if (share := fit.moved(table, ordered)) > MOVED:
        notes.append(f"{what}: noise was smoothed, by up to {share:.0%} of a cell; measure again on a quieter machine")
    return ordered


def _between(known: Mapping[int, float], tokens: int) -> float:
    """On the straight line between the two nearest."""
    lengths = sorted(known)
    return float(np.interp(tokens, lengths, [known[length] for length in lengths]))


def _ends(values: Sequence[float]) -> list[float]:
    return [float(min(values)), float(max(values))]


def _block(info: EngineInfo, notes: list[str]) -> int:
    if "block_tokens" in info.facts:
        return int(info.facts["block_tokens"])
    notes.append(f"the engine does not tell its KV block: {DEFAULT_BLOCK} tokens are assumed")
    return DEFAULT_BLOCK
