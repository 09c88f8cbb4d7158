"""What a reader should be told before the figures: how far a simulation is from what was measured, and what is odd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from foreserve.core import OutcomeKind
from foreserve.simulation.figures import Result, Tally
from foreserve.simulation.survey import Survey

FAR: Final = 0.25
"""A median that is off by more than this share of the live one says that the profile is not that of the machine."""

WARNING: Final = "warning: "
"""What a note begins with that a reader must not miss."""

MOST_FINDINGS: Final = 5
"""Of one run under faults, that are told in words."""

ENOUGH: Final = 20
"""Requests that were done live, of which a median can be judged."""


def against_live(results: Sequence[Result], seen: Survey) -> list[tuple[str, bool]]:
    """The first run held against the recording, service by service: a line each, and whether it is far off."""
    if not results:
        return []
    first = results[0]
    told: list[tuple[str, bool]] = []
    for name, service in first.services.items():
        live = seen.live_for(name, only=len(first.services) == 1)
        if live is None or live.e2e is None or service.tally.e2e is None or live.e2e.n < ENOUGH or not live.e2e.p50:
            continue
        off = service.tally.e2e.p50 / live.e2e.p50 - 1.0
        where = f"{name}: simulated end-to-end p50 is"
        if abs(off) <= FAR:
            told.append((f"{where} within {max(100 * abs(off), 1):.0f} % of live", False))
            continue
        side = "below" if off < 0 else "above"
        words = (
            f"{where} {100 * abs(off):.0f} % {side} live: measure the profile again on a quiet machine, with"
            " as many replicas as serve, and check that the app's settings are those of the recording"
        )
        told.append((words, True))
    return told


def nothing_done(tally: Tally, service: str) -> list[str]:
    """A warning where requests came and not one of them was done, with the most frequent reason."""
    if not tally.requests or tally.outcomes[OutcomeKind.DONE.value]:
        return []
    why = next(iter(tally.reasons), "")
    most = f": {why} ({tally.reasons[why]:,} of them)" if why else ""
    return [f"{WARNING}{service}: of {tally.requests:,} requests not one was done{most}"]


def ordered(notes: Sequence[str]) -> list[str]:
    """Each once, warnings first."""
    return sorted(dict.fromkeys(notes), key=lambda note: not note.startswith(WARNING))


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader should know, warnings first: once where it is the same of every run, else with the run's name."""
    runs: dict[str, list[str]] = {}
    for result in results:
        broken = [f"{WARNING}does not hold: {each}" for each in result.findings[:MOST_FINDINGS]]
        if len(result.findings) > MOST_FINDINGS:
            broken.append(f"{WARNING}does not hold: {len(result.findings) - MOST_FINDINGS} further findings")
        for note in dict.fromkeys([*result.notes, *broken]):
            runs.setdefault(note, []).append(result.name)
    told: list[str] = []
    for note, names in runs.items():
        if len(names) == len(results):
            told.append(note)
            continue
        begins = WARNING if note.startswith(WARNING) else ""
        told += [f"{begins}{name}: {note.removeprefix(WARNING)}" for name in names]
    return ordered(told)
