"""`foreserve explain --scaling`: each decision on how many replicas there are, in words with the figures behind it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from foreserve.errors import ConfigError
from foreserve.loads import decisions, loads_file
from foreserve.scaling import ScalingDecision

LAST: Final = 20
"""How many are told where nobody says."""


def found(folder: Path, last: int, service: str | None) -> list[ScalingDecision]:
    """The newest of one service or of all, oldest first. Raises ConfigError where there are none."""
    path = loads_file(folder)
    kept = decisions(path, last, service)
    if not kept:
        others = sorted({each.service for each in decisions(path, last)})
        of = f" for a service {service!r}" if service else ""
        there = f"; those of late are for {', '.join(others)}" if others else ""
        raise ConfigError(f"{path} has no decision{of}{there}; a service with `replicas: [least, most]` makes them")
    return kept


def sentence(decision: ScalingDecision, day: bool = False) -> str:
    """One decision: when, for whom, from how many to how many, and why. `day`: with its date."""
    at = datetime.fromtimestamp(decision.at).astimezone().strftime("%Y-%m-%d %H:%M:%S" if day else "%H:%M:%S")
    stays = decision.granted == decision.active
    change = f"stays {decision.active}" if stays else f"{decision.active} -> {decision.granted}"
    wanted = "" if decision.wanted == decision.granted else f" ({decision.wanted} wanted: {decision.shared})"
    return f"{at} {decision.service} {change}{wanted}: {decision.why}"


def sentences(kept: Sequence[ScalingDecision]) -> list[str]:
    """A line for each, with dates where they are not all of one day."""
    days = {datetime.fromtimestamp(each.at).astimezone().date() for each in kept}
    return [sentence(each, day=len(days) > 1) for each in kept]
