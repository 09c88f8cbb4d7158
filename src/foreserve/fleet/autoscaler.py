"""How many replicas a service should have: the scaling policies, each pure but for its own memory.

Source: PreServe (arXiv 2504.03702): a forecast sets the floor, anticipated overload adds at once. Registered as
`foreserve.scaling_policies`; a service's `scaling.policy_options` are keyword arguments of the one it names.
"""

from __future__ import annotations

from typing import Final

from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler_headroom import Headroom
from foreserve.fleet.autoscaler_need import CONSOLIDATE, OVERLOADED, whole
from foreserve.fleet.autoscaler_tiers import Anticipated, Foreseen, Leaving, Tiers
from foreserve.fleet.autoscaler_words import amount, waits
from foreserve.fleet.autoscaler_wrappers import Careful, CoolDown, CoolUp, Hysteresis
from foreserve.scaling import Scale, ScalingView

REACTIVE_TARGET: Final = 0.7
"""The share of a replica's slots and memory that `reactive` goes by, where it is told none."""


def _positive(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ConfigError(f"scaling.policy_options: {name} is {value}; it must be above 0")


class Static:
    """`static`: the number there is, within its bounds. With `replicas` that number."""

    def __init__(self, replicas: int | None = None) -> None:
        if replicas is not None and replicas < 0:
            raise ConfigError(f"scaling.policy_options: replicas is {replicas}; it must be at least 0")
        self._replicas = replicas

    def decide(self, view: ScalingView, now: float) -> Scale:
        wanted = view.active if self._replicas is None else self._replicas
        return Scale(wanted=wanted, why="the number is fixed")


# --- by what runs now


class Reactive:
    """`reactive`: as many as keep each at its target, by what runs and waits now.

    What an HPA or Ray Serve does: `ceil(ongoing / target_ongoing)`, where ongoing requests are those that run or wait.
    Without `target_ongoing` it is `target` (0.7) of a replica's slots; only one of the two may be set. Memory that an
    engine reports in use counts against `target` likewise. Within `tolerance` of the target nothing changes. More at
    once or after `up_s`, fewer after `down_s`.
    """

    def __init__(
        self,
        target: float | None = None,
        target_ongoing: float | None = None,
        tolerance: float = 0.1,
        up_s: float = 0.0,
        down_s: float = 300.0,
    ) -> None:
        if target is not None and target_ongoing is not None:
            raise ConfigError(
                "policy reactive: `target` (a share of the slots) and `target_ongoing` (requests) are both set; "
                "valid: one of them"
            )
        target = REACTIVE_TARGET if target is None else target
        _positive(target=target, target_ongoing=target_ongoing, down_s=down_s)
        self._policy = CoolDown(CoolUp(_Ongoing(target, target_ongoing, tolerance), up_s), down_s)

    def decide(self, view: ScalingView, now: float) -> Scale:
        return self._policy.decide(view, now)


class _Ongoing:
    def __init__(self, target: float, target_ongoing: float | None, tolerance: float) -> None:
        self._target = target
        self._ongoing = target_ongoing
        self._tolerance = tolerance

    def decide(self, view: ScalingView, now: float) -> Scale:
        ready = [replica for replica in view.replicas if replica.phase == "ready"]
        slots = max((replica.slots for replica in ready), default=0.0)
        each = self._ongoing or self._target * slots
        if each <= 0:  # none has been ready yet, so nobody knows how many one takes
            return Scale(wanted=max(view.active, min(1, view.waiting.count)), why=f"none is ready; {waits(view)}")
        ongoing = view.waiting.count + sum(replica.running for replica in view.replicas)
        full = [
            load.kv_fraction for load in (replica.load for replica in ready) if load is not None and load.kv_fraction
        ]
        needed = max(ongoing / each, sum(full) / self._target)
        figures = {"need": needed, "ongoing": float(ongoing), "target_ongoing": each}
        why = f"{ongoing} requests run or wait against a target of {amount(each)} per replica"
        if abs(needed - view.active) <= self._tolerance * view.active:
            return Scale(wanted=view.active, why=why, figures=figures)
        wanted = whole(needed)
        unknown = [replica.name for replica in ready if not replica.known]
        if unknown and wanted < view.active:
            wanted, why = view.active, f"{why}; no fewer: nothing fresh is known of {', '.join(unknown)}"
        return Scale(wanted=wanted, why=why, figures=figures)


# --- by what is to come


class Forecast:
    """`forecast`: as many as the forecast asks for (PreServe's Alg. 2), and nothing else.

    Its high quantile counts, of which each replica is given at most `target` of what it can do. Fewer only where
    `margin` of a replica is left over, once per `down_s` (one window, at least two starts), at most `part` of them.
    """

    def __init__(
        self, target: float = 1.0, margin: float = 0.15, down_s: float | None = None, part: float = 0.5
    ) -> None:
        _positive(target=target, down_s=down_s, part=part)
        self._policy = CoolDown(Careful(Hysteresis(Foreseen(target), down=margin)), down_s, part)

    def decide(self, view: ScalingView, now: float) -> Scale:
        return self._policy.decide(view, now)


# --- both


class Hybrid:
    """`hybrid`, the default: the forecast sets the floor, anticipated overload adds at once, what is idle goes.

    Overload is a look-ahead map that is fuller than `overloaded` for more than a tenth of the steps ahead, or a queue
    whose wait is predicted beyond `wait_s`: as many are added as have cleared it `clear_s` after their start (one start
    time and at least 10 s, where that is not given), once for each episode, since those that start count as there.
    With `up_s` no more are added for so long after some were; at its default of 0 a burst that grows adds at each look.

    Fewer at most once per `down_s` (as of `forecast`) and at most `part` of them, when every replica is known, nothing
    is foreseen to rise, what came of late and what is held fits on the rest at `target`, and `margin` of a replica is
    left over. While nothing can be foreseen, only when no map is above `consolidate`.

    What the forecast asks for is multiplied by a headroom that it learns: more after each time that requests had to
    wait for more than `wait_s`, less in the windows without, so that this befalls one window in `seldom` (see
    `autoscaler_headroom`).
    """

    def __init__(
        self,
        target: float = 1.0,
        wait_s: float = 2.0,
        clear_s: float | None = None,
        overloaded: float = OVERLOADED,
        consolidate: float = CONSOLIDATE,
        margin: float = 0.15,
        up_s: float = 0.0,
        down_s: float | None = None,
        part: float = 0.5,
        seldom: float | None = 150.0,
    ) -> None:
        _positive(
            target=target, wait_s=wait_s, clear_s=clear_s, overloaded=overloaded, consolidate=consolidate,
            down_s=down_s, part=part, seldom=seldom,
        )  # fmt: skip
        headroom = Headroom(wait_s, seldom)
        tiers = Tiers(
            floor=Hysteresis(Foreseen(target, headroom), down=margin),
            adding=CoolUp(Anticipated(wait_s, clear_s, overloaded), up_s),
            leaving=Leaving(target, consolidate, wait_s),
        )
        self._policy = CoolDown(Careful(tiers), down_s, part)

    def decide(self, view: ScalingView, now: float) -> Scale:
        return self._policy.decide(view, now)
