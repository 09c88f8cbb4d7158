"""Load real encoders in their worker process and count what they are worth: a task on MiniLM, on held-out texts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.common import Report
from benchmarks.elastic_play import QUEUE, Tally, drawn, played
from benchmarks.elastic_switching import Switching
from benchmarks.elastic_tasks import labelled_texts
from benchmarks.elastic_two_models import SMALL, Switched, head_alone
from benchmarks.labelled_sets import labelled_set
from foreserve.app import App
from foreserve.elastic.profile import Profile, interpolated
from foreserve.services.encoder import Encoder
from foreserve.services.encoder_plans import Allowed

SIZE = 32
POINTS = (("bursty", 0.5), ("trace", 1.0), ("steady", 1.5), ("bursty", 2.0))
SECONDS = 5.0
LENGTH = 32
"""Of most texts, in tokens: what capacity and deadlines are told by."""

OURS, PLAIN, SWITCHING = "ours", "plain dynamic batching", "switching"


def live(report: Report, name: str, base: Path, quick: bool, told: Callable[[float], None]) -> None:
    """Ours, fixed settings under our policy, plain dynamic batching, and two models that are switched."""
    alone = ("plain",) if quick else ("merge:2", "plain", "prompts:8")
    sides = (OURS, *(f"{each} alone" for each in alone), PLAIN, SWITCHING)
    found: dict[str, dict[str, Tally]] = {}
    pace: list[float] = []
    for at, side in enumerate(sides):
        found[side] = asyncio.run(_served(report, side, name, base, quick, pace))
        for point, tally in found[side].items():
            shares = ", ".join(f"{part} {value:.2f}" for part, value in tally.shares().items())
            report.note(f"live, {point}: {side} {tally.utility:.0f} ({shares}), {dict(tally.settings)}")
        told((at + 1) / len(sides))
    totals = {side: sum(each.utility for each in points.values()) for side, points in found.items()}
    best = max((each for each in totals if each.endswith(" alone")), key=totals.__getitem__)
    report.note(f"live, {name}: the best of one setting is {best}")
    for key, side in (("best_fixed", best), ("plain_batching", PLAIN), ("switching", SWITCHING)):
        report.add(f"live_utility_vs_{key}", totals[OURS] / max(totals[side], 1e-9), "1.25")


def _service(side: str, name: str, base: Path, quick: bool) -> tuple[Encoder, dict[str, float]]:
    """The kind, and what the requests of this side allow."""
    words = {"tasks": str(base), "max_running": SIZE, "threads": 1, "queue": QUEUE}
    if side == SWITCHING:
        small = head_alone(name, base.parent / "minilm-3", *labelled_texts(name, quick))
        encoder: Encoder = Switched(base.parent / "minilm-3", **words)
        encoder.check()
        return encoder, {SMALL: small.accuracy["plain"], "plain": encoder.tasks[name].accuracy["plain"]}
    encoder = Encoder("minilm", policy="deferred" if side == PLAIN else "auto", **words)
    encoder.check()
    task = encoder.tasks[name]
    if side == OURS:
        return encoder, {each: task.accuracy[each] for each in task.kept}
    one = "plain" if side == PLAIN else side.removesuffix(" alone")
    return encoder, {one: task.accuracy[one]}


async def _served(report: Report, side: str, name: str, base: Path, quick: bool, pace: list[float]) -> dict[str, Tally]:
    rows = labelled_set(name)
    assert rows is not None
    texts = rows[1]
    encoder, plans = _service(side, name, base, quick)
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
        if side == SWITCHING:
            policy = Switching(profile, (SMALL, "plain"), capacity, size=SIZE)
            service.dispatcher.adopt(policy, service.dispatcher._admission)
            ratio = interpolated(profile, profile.seconds[SMALL], SIZE, LENGTH) / pace[1]
            report.note(f"live: the smaller model takes {ratio:.2f} of the time, its accuracy is {plans[SMALL]:.4f}")
        task = encoder.tasks[name]
        payloads = [msgspec.structs.replace(each, task=name) for each in encoder.texts([t for t, _ in texts], "text")]
        for kind, share in POINTS[1:2] if quick else POINTS:
            count = int(share * capacity * (2 if quick else SECONDS))
            queries = drawn(kind, share * capacity, count, unit, 1, [name])
            order = np.random.default_rng(2).integers(0, len(texts), count)

            def payload(at: int, order: Any = order) -> Any:
                return payloads[order[at]]

            def judged(at: int, answer: Any, order: Any = order) -> tuple[str, bool]:
                probabilities = np.frombuffer(answer.encoding.data, "<f4")
                return answer.encoding.setting, task.labels[int(probabilities.argmax())] == texts[order[at]][1]

            found[f"{kind} at {share:g}"] = await played(service, queries, payload, judged, Allowed(plans=plans))
    finally:
        await running.stop(30.0)
    running.ledger.check()
    return found
