"""Measures a running server from outside: what a client can see of its steps, and what it has to be told or assumes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from statistics import median
from typing import Final

import msgspec
from msgspec.structs import replace

from foreserve.core import EngineInfo
from foreserve.engines.profile import EngineProfile
from foreserve.loadgen.arrivals import generator
from foreserve.simulation import calibrate_continuous as continuous
from foreserve.simulation.calibrate import SEED, STARTING, complete, of_steps
from foreserve.simulation.calibrate_plan import Effort, Limits, Tell
from foreserve.simulation.probe_remote import RemoteProbe, context_told

MOST_SLOTS: Final = 256
"""The most requests at once that are tried."""

CONTEXT: Final = 8192
"""Assumed where nobody tells."""

STANDS_STILL: Final = 0.7
"""Who decodes beside a prompt and waits for this share of its prefill stands still meanwhile."""

_TIMEOUT_S: Final = 300.0


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator knows of the server. `None`: it is found out, or assumed with a note."""

    slots: int | None = None
    kv_tokens: int | None = None
    context_tokens: int | None = None
    max_batched_tokens: int | None = None


async def calibrate_remote(
    url: str,
    model: str,
    headers: Mapping[str, str],
    told: Told,
    effort: Effort,
    *,
    name: str = "",
    tell: Tell = lambda done, what: None,
) -> EngineProfile:
    """Measure the server at `url` (with or without `/v1`). It should have nothing else to do meanwhile.

    Raises ConfigError for a server that cannot be measured, EngineStartError when it fails on the way.
    """
    notes: list[str] = []
    tell(0.0, "asking the server")
    context = told.context_tokens or await context_told(url, model, headers)
    if context is None:
        context = CONTEXT
        notes.append(f"the server does not tell its context: {context} tokens are assumed (--context-tokens)")
    async with RemoteProbe(url, model, headers, generator(SEED), _TIMEOUT_S) as probe:
        await probe.prepare()
        for _ in range(3):
            await probe.ask((32, 4))
        slots = told.slots
        if slots is None:
            tell(STARTING / 2, "how many run at once")
            slots, bound = await _slots(probe)
            words = f"more than {slots} were not tried" if bound else f"the {slots + 1}th waits for an end"
            notes.append(f"{slots} run at once, as measured: {words} (--slots)")
        kv = told.kv_tokens
        if kv is None:
            kv = slots * context
            notes.append(f"its KV cache is not known: room for {kv} tokens is assumed, all slots full (--kv-tokens)")
        budget = told.max_batched_tokens or await _budget(probe, context, notes)
        limits = Limits(slots=slots, kv_tokens=kv, context=min(context, kv), budget=budget)
        steps = await continuous.measure(
            probe, limits, effort, lambda done, what: tell(STARTING + (1.0 - STARTING) * done, what)
        )
        notes += _seen(probe)
    tell(1.0, "done")
    facts = {} if budget is None else {"max_batched_tokens": budget}
    info = EngineInfo(batching="continuous", capacity={"slots": float(slots)}, facts=facts)
    profile = of_steps(info, limits, steps)
    notes.append("seen from outside: network and HTTP are in `overhead_s`, start and memory are not known")
    profile = replace(profile, notes=[*notes, *profile.notes])
    return replace(complete(profile, name=name, starts=[0.0], memory=0), machine=url)


def _seen(probe: RemoteProbe) -> list[str]:
    notes = []
    if not probe.as_ids:
        notes.append("the server takes no token ids: prompts were short words, their lengths in tokens are about right")
    if not probe.forced and probe.short:
        notes.append(f"the server takes no `ignore_eos`: {probe.short} answers ended early, so decode is less certain")
    if probe.merged:
        notes.append("some events held several tokens: decode steps are longer than the engine's")
    return notes


async def _slots(probe: RemoteProbe) -> tuple[int, bool]:
    """How many have begun before the first of many has ended, and whether that was all that was tried."""
    count = 4
    while True:
        asked = await probe.ask(*((16, 32) for _ in range(count)))
        first_end = min(each.times[-1] for each in asked)
        begun = sum(each.times[0] < first_end for each in asked)
        if begun < count:
            return begun, False
        if count >= MOST_SLOTS:
            return count, True
        count *= 2


async def _budget(probe: RemoteProbe, context: int, notes: list[str]) -> int | None:
    """Tokens of a step: by how long somebody who decodes waits while a long prompt is computed."""
    length = min(4096, context // 2)
    alone = median([(await probe.ask((length, 1)))[0].first_s for _ in range(3)])
    waits = []
    for _ in range(3):
        (other,) = probe.send((16, max(1, min(400, context // 2 - 32))))
        await probe.begin([other])
        if await probe.more(other, 4):
            await probe.ask((length, 1))
            await probe.more(other, 2)
            gaps = [b - a for a, b in itertools.pairwise(other.times)]
            waits.append(max(gaps, default=0.0))
        await probe.stop([other])
    if not waits:
        notes.append("answers were too short to see what waits for a prompt (--max-batched-tokens)")
        return None
    share = median(waits) / alone
    if share >= STANDS_STILL:
        notes.append("decoding stands still while a prompt is computed, as measured (--max-batched-tokens)")
        return None
    budget = 1 << max(5, round(share * length).bit_length() - 1)
    budget = budget * 2 if share * length > 1.5 * budget else budget
    notes.append(f"a step computes about {budget} tokens, by how long others wait for prompts (--max-batched-tokens)")
    return budget
