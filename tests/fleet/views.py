"""Views of a service for tests of scaling policies, of few words."""

from __future__ import annotations

from typing import Any

import msgspec

from foreserve.core import EngineLoad, Ramp
from foreserve.fleet.occupancy import Ahead
from foreserve.scaling import Capacity, LoadForecast, ReplicaPhase, ReplicaView, ScalingView, Waiting

M = 10_000


def ahead(share: float) -> Ahead:
    """A map that is `share` full for all the steps ahead that anybody looks at."""
    made = Ahead({"kv_tokens": float(M)})
    if share:
        # A ramp grows by one a step: it reaches the share at the last of the hundred steps.
        made.map("kv_tokens").add("r", Ramp(resource="kv_tokens", base=int(share * M) - 99, steps=100, most=M))
    return made


def replica(
    n: int = 0,
    phase: ReplicaPhase = "ready",
    running: int = 0,
    share: float = 0.0,
    known: bool = True,
    slots: float = 8.0,
    load: EngineLoad | None = None,
) -> ReplicaView:
    up = phase != "starting"
    return ReplicaView(
        name=f"s/{n}.1", phase=phase, since=0.0, running=running, slots=slots if up else 0.0,
        ahead=ahead(share) if up else None, known=known, load=load,
    )  # fmt: skip


def forecast(high: dict[str, float], expected: dict[str, float] | None = None, **words: Any) -> LoadForecast:
    """Of the window of 60 s that begins in 40 s."""
    told: dict[str, Any] = {
        "at": 1040.0, "window_s": 60.0, "level": 0.8, "model": "gradient_boosting",
        "error": 0.1, "judged_s": 86_400.0,
    }  # fmt: skip
    expected = high if expected is None else expected
    return LoadForecast(**{**told, "expected": expected, "low": dict.fromkeys(high, 0.0), "high": high, **words})


def view(replicas: int | list[ReplicaView] = 1, **words: Any) -> ScalingView:
    """One replica can do 10 tokens a second, and a start takes 30 s, but where words say otherwise."""
    stand = [replica(n) for n in range(replicas)] if isinstance(replicas, int) else replicas
    told: dict[str, Any] = {
        "service": "s", "at": 1000.0, "replicas": tuple(stand), "waiting": Waiting(), "recent": {"tokens": 0.0},
        "least": 1, "most": 8, "start_s": 30.0, "capacity": Capacity(per_s={"tokens": 10.0}),
    }  # fmt: skip
    return ScalingView(**{**told, **words})


def foreseen(per_s: float, replicas: int | list[ReplicaView] = 1, **words: Any) -> ScalingView:
    """So many tokens a second come, and are foreseen to come."""
    words = {"recent": {"tokens": per_s}, **words}
    return view(replicas, forecast=forecast({"tokens": 60.0 * per_s, "requests": 60.0}), **words)


def after(before: ScalingView, wanted: int) -> ScalingView:
    """As it stands right after the fleet has heard of so many: who is added starts, who is too much is isolated."""
    stand = list(before.replicas)
    while sum(each.phase in ("starting", "ready") for each in stand) < wanted:
        stand.append(replica(len(stand), "starting"))
    for n in range(len(stand) - 1, -1, -1):
        if sum(each.phase in ("starting", "ready") for each in stand) > wanted:
            stand[n] = msgspec.structs.replace(stand[n], phase="isolated")
    return msgspec.structs.replace(before, replicas=tuple(stand))
