"""How many replicas a service should have: the scaling policies, each pure but for its own memory.

Source: PreServe (arXiv 2504.03702): a forecast sets the floor, anticipated overload adds at once. Registered as
`foreserve.scaling_policies`; a service's `scaling.policy_options` are keyword arguments of the one it names.
"""

from __future__ import annotations

from foreserve.errors import ConfigError
from foreserve.fleet.autoscaler_need import (
    CONSOLIDATE,
    OVERLOADED,
    Need,
    backlog,
    consolidated,
    need,
    overloaded,
    share_held,
    to_clear,
    whole,
)
from foreserve.fleet.autoscaler_words import amount, asked, times, waits
from foreserve.fleet.autoscaler_wrappers import Careful, CoolDown, CoolUp, Hysteresis
from foreserve.scaling import ReplicaView, Scale, ScalingView

RISING = 1.1
"""A forecast rises when even its low quantile is more than so many times what came of late."""


CLEAR_S = 10.0
"""What would have less to do before it is too many is not added for what waits, however short a start is."""

QUIET_S = 10.0
"""An overload that was not seen for so long, or for a start, has ended."""


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
    Without `target_ongoing` it is `target` of a replica's slots; memory that an engine reports in use counts likewise.
    Within `tolerance` of the target nothing changes. More at once or after `up_s`, fewer after `down_s`.
    """

    def __init__(
        self,
        target: float = 0.7,
        target_ongoing: float | None = None,
        tolerance: float = 0.1,
        up_s: float = 0.0,
        down_s: float = 300.0,
    ) -> None:
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
    `margin` of a replica is left over, and once per `down_s` (one window where that is not given).
    """

    def __init__(self, target: float = 1.0, margin: float = 0.15, down_s: float | None = None) -> None:
        _positive(target=target, down_s=down_s)
        self._policy = CoolDown(Careful(Hysteresis(_Foreseen(target), down=margin)), down_s)

    def decide(self, view: ScalingView, now: float) -> Scale:
        return self._policy.decide(view, now)


class _Foreseen:
    """Tier 1. Where nothing is foreseen yet what came of late is taken for what will come."""

    def __init__(self, target: float) -> None:
        self._target = target

    def decide(self, view: ScalingView, now: float) -> Scale:
        found = self.need(view)
        if found is None:
            return Scale(wanted=view.active, why="held: what one replica can do is not known yet")
        needed = found.replicas / self._target
        figures = {"need": needed, "per_s": found.per_s, "per_replica_s": found.each, "target": self._target}
        wanted = max(whole(needed), min(1, view.active))  # whether there is to be none is not asked here
        return Scale(wanted=wanted, why=asked(found, view.forecast, view), figures=figures)

    def need(self, view: ScalingView) -> Need | None:
        """What is to come in replicas kept busy."""
        if view.forecast is None:
            return need(view.recent, view.capacity)
        return need({name: high / view.forecast.window_s for name, high in view.forecast.high.items()}, view.capacity)


# --- both


class Hybrid:
    """`hybrid`, the default: the forecast sets the floor, anticipated overload adds at once, what is idle goes.

    Overload is a look-ahead map that is fuller than `overloaded` for more than a tenth of the steps ahead, or a queue
    whose wait is predicted beyond `wait_s`: as many are added as have cleared it `clear_s` after their start (one start
    time and at least 10 s, where that is not given), once for each episode, since those that start count as there.

    Fewer at most once per `down_s` (one window), when every replica is known, nothing is foreseen to rise, what came of
    late and what is held fits on the rest at `target`, and `margin` of a replica is left over. While nothing can be
    foreseen, only when no map is above `consolidate`.
    """

    def __init__(
        self,
        target: float = 1.0,
        wait_s: float = 2.0,
        clear_s: float | None = None,
        overloaded: float = OVERLOADED,
        consolidate: float = CONSOLIDATE,
        margin: float = 0.15,
        up_s: float | None = None,
        down_s: float | None = None,
    ) -> None:
        _positive(
            target=target, wait_s=wait_s, clear_s=clear_s, overloaded=overloaded, consolidate=consolidate, down_s=down_s
        )
        tiers = _Tiers(
            floor=Hysteresis(_Foreseen(target), down=margin),
            adding=CoolUp(_Anticipated(wait_s, clear_s, overloaded), up_s),
            leaving=_Leaving(target, consolidate, wait_s),
        )
        self._policy = CoolDown(Careful(tiers), down_s)

    def decide(self, view: ScalingView, now: float) -> Scale:
        return self._policy.decide(view, now)


class _Tiers:
    def __init__(self, floor: Hysteresis, adding: CoolUp, leaving: _Leaving) -> None:
        self._floor = floor
        self._adding = adding
        self._leaving = leaving

    def decide(self, view: ScalingView, now: float) -> Scale:
        floor, added = self._floor.decide(view, now), self._adding.decide(view, now)
        figures = {**added.figures, **floor.figures, "floor": float(floor.wanted)}
        if added.wanted > max(floor.wanted, view.active):
            why = added.why if floor.wanted < view.active else f"{added.why}; {floor.why}"
            return Scale(wanted=added.wanted, why=why, figures=figures)
        if floor.wanted > view.active:
            return Scale(wanted=floor.wanted, why=f"{floor.why}; {waits(view)}", figures=figures)
        keep, why = self._leaving.keep(view)
        if added.figures["overloaded"]:
            keep, why = view.active, "no fewer while one is overloaded"
        wanted = min(view.active, max(floor.wanted if "need" in floor.figures else 0, keep))
        said = [floor.why, *([why] if why else []), waits(view)]
        return Scale(wanted=wanted, why="; ".join(said), figures=figures)


class _Anticipated:
    """Tier 2. It only adds: one for each replica that has become overloaded, or what clears the queue in time."""

    def __init__(self, wait_s: float, clear_s: float | None, above: float) -> None:
        self._wait_s = wait_s
        self._clear_s = clear_s
        self._above = above
        self._episode: dict[str, float] = {}
        """Those whose overload has been answered, and when it was last seen."""
        self._wanted = 0

    def decide(self, view: ScalingView, now: float) -> Scale:
        full = {replica.name for replica in view.replicas if _works(replica) and overloaded(replica, self._above)}
        new = full - set(self._episode)
        # It ends when a start would have come and gone without it: a map that goes up and down is one episode.
        quiet_since = now - max(view.start_s, QUIET_S)
        seen = {**self._episode, **dict.fromkeys(sorted(full), now)}
        self._episode = {name: at for name, at in seen.items() if at > quiet_since}
        if not full:
            self._wanted = min(self._wanted, view.active)  # what has left since is not brought back by the same one
        if new:
            self._wanted = max(self._wanted, view.active + len(new))
        elif not self._episode:
            self._wanted = 0
        by_map = max(view.active, self._wanted) if full else view.active
        found = need(view.recent, view.capacity)
        flow = 0.0 if found is None else found.replicas
        wait_s = _wait(view)
        figures = {"overloaded": float(len(full)), "backlog_s": backlog(view), "busy": flow}
        if wait_s is not None:
            figures["predicted_wait_s"] = wait_s
        by_queue = view.active
        if (wait_s is not None and wait_s > self._wait_s) or flow > max(view.active, 1):
            clear_s = max(self._wait_s, view.start_s, CLEAR_S) if self._clear_s is None else self._clear_s
            by_queue = max(view.active, whole(to_clear(view, clear_s, flow)))
        elif wait_s is None and _without_slot(view) > 0 and not _starting(view):
            by_queue = view.active + 1
        wanted = max(by_map, by_queue)
        if wanted <= view.active:
            return Scale(wanted=view.active, why=waits(view), figures=figures)
        if by_map >= by_queue:
            names = ", ".join(sorted(full))
            why = f"{times(len(full))} foreseen above {100 * self._above:.0f} % of its memory ({names}); {waits(view)}"
        else:
            came = "" if found is None else f"; {amount(found.per_s)} {found.measure.replace('_', ' ')}/s came of late"
            why = f"{waits(view)}{came}"
        return Scale(wanted=wanted, why=why, figures=figures)


class _Leaving:
    """How many are enough of those there are, where all evidence is there; else as many as there are, and why."""

    def __init__(self, target: float, consolidate: float, wait_s: float) -> None:
        self._target = target
        self._consolidate = consolidate
        self._wait_s = wait_s

    def keep(self, view: ScalingView) -> tuple[int, str]:
        working = [replica for replica in view.replicas if replica.phase == "ready"]
        shares = [share_held(replica) for replica in working]
        unknown = [replica.name for replica, share in zip(working, shares, strict=True) if share is None]
        if unknown:
            return view.active, f"no fewer: nothing fresh is known of {', '.join(unknown)}"
        known = [share for share in shares if share is not None]
        late = need(view.recent, view.capacity)
        if view.forecast is None or late is None:
            if view.waiting.count:
                return view.active, ""
            enough = consolidated(known, self._consolidate)
            if enough is None:
                return view.active, "" if not known else f"one is {100 * max(known):.0f} % full"
            return enough, f"none is foreseen above {100 * self._consolidate:.0f} % full"
        least = {name: value / view.forecast.window_s for name, value in view.forecast.low.items()}
        coming = need(least, view.capacity)
        # Even at the low quantile: what came of late is a few requests, and always a little off what is expected.
        if coming is not None and coming.replicas > RISING * late.replicas + 0.1:
            return view.active, "no fewer: the load is foreseen to rise"
        waiting = backlog(view) / max(self._wait_s, view.start_s)
        enough = max(1, whole((late.replicas + waiting) / self._target), whole(sum(known) / self._target))
        return enough, f"what runs now keeps {amount(sum(known))} replicas full" if enough >= view.active > 1 else ""


def _works(replica: ReplicaView) -> bool:
    return replica.phase == "ready"


def _starting(view: ScalingView) -> bool:
    return any(replica.phase == "starting" for replica in view.replicas)


def _without_slot(view: ScalingView) -> float:
    """How many wait for which no slot is free: others have only just come, and start at once."""
    return view.waiting.count - sum(each.slots - each.running for each in view.replicas if each.phase == "ready")


def _wait(view: ScalingView) -> float | None:
    """What one that came now would wait, in seconds; `None` where nothing tells."""
    if not view.waiting.count:
        return 0.0
    told = view.waiting.predicted_wait_s
    work = backlog(view)
    if told is None:
        return work / max(view.active, 1) if work > 0 else None
    return max(told, work / max(view.active, 1))
