"""Load a real encoder in its worker process and count what it is worth: a task on MiniLM, on held-out texts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.common import Report, console
from benchmarks.elastic_play import QUEUE, Tally, drawn, played
from benchmarks.labelled_sets import labelled_set
from foreserve.app import App
from foreserve.elastic.profile import Profile, interpolated
from foreserve.services.encoder import Encoder
from foreserve.services.encoder_plans import Allowed

SIZE = 32
POINTS = (("steady", 1.0), ("bursty", 1.0), ("trace", 1.0), ("steady", 2.0), ("bursty", 2.0), ("trace", 2.0))
LENGTH = 64
"""Of most texts, in tokens, as the profile has lengths: what capacity and deadlines are told by."""


def live(report: Report, name: str, base: Path, fixed: str, quick: bool) -> None:
    """Ours, one fixed setting under our policy, and plain dynamic batching, at a few points."""
    rows = labelled_set(name)
    assert rows is not None
    ours: dict[str, Tally] = {}
    pace: list[float] = []
    for side in ("ours", f"{fixed} alone", "plain dynamic batching"):
        found = asyncio.run(_served(side, name, base, rows[1], quick, pace))
        if side == "ours":
            ours = found
        for point, tally in found.items():
            told = ", ".join(f"{part} {value:.2f}" for part, value in tally.shares().items())
            report.note(f"live, {point}: {side} {tally.utility:.0f} ({told}), {dict(tally.settings)}")
        if side != "ours":
            mine, theirs = (sum(each.utility for each in points.values()) for points in (ours, found))
            key = "best_fixed" if side.endswith("alone") else "plain_batching"
            report.add(f"live_utility_vs_{key}", mine / max(theirs, 1e-9), "1.25")


async def _served(
    side: str, name: str, base: Path, texts: list[tuple[str, str]], quick: bool, pace: list[float]
) -> dict[str, Tally]:
    policy = "deferred" if side == "plain dynamic batching" else "auto"
    encoder = Encoder("minilm", tasks=str(base), max_running=SIZE, threads=1, queue=QUEUE, policy=policy)
    running = App(encoder=encoder, state={"history": False}).run()
    await running.start()
    found: dict[str, Tally] = {}
    try:
        service = running.services["encoder"]
        profile: Profile = encoder._timing.profile
        # What the first side measured says what a load is, for all of them.
        if not pace:
            pace += [interpolated(profile, profile.seconds["plain"], count, LENGTH) for count in (8, SIZE)]
        unit, capacity = pace[0], SIZE / pace[1]
        task = encoder.tasks[name]
        plans = {each: task.accuracy[each] for each in task.kept}
        if side.endswith(" alone"):
            plans = {side.removesuffix(" alone"): task.accuracy[side.removesuffix(" alone")]}
        elif policy == "deferred":
            plans = {"plain": task.accuracy["plain"]}
        payloads = [msgspec.structs.replace(each, task=name) for each in encoder.texts([t for t, _ in texts], "text")]
        for kind, share in POINTS[3:5] if quick else POINTS:
            count = int(share * capacity * (2 if quick else 8))
            queries = drawn(kind, share * capacity, count, unit, seed=1)
            order = np.random.default_rng(2).integers(0, len(texts), count)

            def payload(at: int, order: Any = order) -> Any:
                return payloads[order[at]]

            def judged(at: int, answer: Any, order: Any = order) -> tuple[str, bool]:
                probabilities = np.frombuffer(answer.encoding.data, "<f4")
                return answer.encoding.setting, task.labels[int(probabilities.argmax())] == texts[order[at]][1]

            found[f"{kind} at {share:g}"] = await played(service, queries, payload, judged, Allowed(plans=plans))
            console.print(f"live: {side}, {kind} at {share:g} done")
    finally:
        await running.stop(30.0)
    running.ledger.check()
    return found
