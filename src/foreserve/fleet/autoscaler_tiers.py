"""The tiers of the hybrid policy: what the forecast asks for, what is added at once, and how many are enough.

Source: PreServe (arXiv 2504.03702), section 4: tier 1 by windows, tier 2 by the look-ahead maps of replicas.
"""

from __future__ import annotations

from collections import deque

from foreserve.fleet.autoscaler_headroom import Headroom
from foreserve.fleet.autoscaler_need import (
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
from foreserve.fleet.autoscaler_wrappers import CoolUp, Hysteresis
from foreserve.scaling import ReplicaView, Scale, ScalingView

RISING = 1.1
"""A forecast rises when even its low quantile is more than so many times what came of late."""


CLEAR_S = 10.0
"""What would have less to do before it is too many is not added for what waits, however short a start is."""

RISE_S = 10.0
"""What a queue has grown by in so long tells how much comes."""

QUIET_S = 10.0
"""An overload that was not seen for so long, or for a start, has ended."""


class Foreseen:
    """Tier 1. Where nothing is foreseen yet what came of late is taken for what will come. It keeps `headroom` up."""

    def __init__(self, target: float, headroom: Headroom | None = None) -> None:
        self._target = target
        self._headroom = headroom

    def decide(self, view: ScalingView, now: float) -> Scale:
        found = _coming(view)
        if self._headroom is not None:
            self._headroom.look(view, now, None if found is None else found.replicas)
        if found is None:
            return Scale(wanted=view.active, why="no floor: what one replica can do is not known yet")
        headroom = 1.0 if self._headroom is None else self._headroom.factor
        needed = found.replicas * headroom / self._target
        figures = {"need": needed, "per_s": found.per_s, "per_replica_s": found.each, "target": self._target}
        if self._headroom is not None:
            figures["headroom"] = headroom
        wanted = max(whole(needed), min(1, view.active))  # whether there is to be none is not asked here
        return Scale(wanted=wanted, why=asked(found, view.forecast, view), figures=figures)


def _coming(view: ScalingView) -> Need | None:
    """What is to come in replicas kept busy."""
    if view.forecast is None:
        return need(view.recent, view.capacity)
    return need({name: high / view.forecast.window_s for name, high in view.forecast.high.items()}, view.capacity)


class Tiers:
    """What is added counts above the floor; fewer than there are only where both tiers ask for no more."""

    def __init__(self, floor: Hysteresis, adding: CoolUp, leaving: Leaving) -> None:
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


class Anticipated:
    """Tier 2. It only adds: one for each replica that has become overloaded, or what clears the queue in time."""

    def __init__(self, wait_s: float, clear_s: float | None, above: float) -> None:
        self._wait_s = wait_s
        self._clear_s = clear_s
        self._above = above
        self._episode: dict[str, float] = {}
        """Those whose overload has been answered, and when it was last seen."""
        self._wanted = 0
        self._rise = Rise()

    def decide(self, view: ScalingView, now: float) -> Scale:
        full = {replica.name for replica in view.replicas if _works(replica) and overloaded(replica, self._above)}
        found = need(view.recent, view.capacity)
        flow = 0.0 if found is None else max(found.replicas, self._rise.look(view, now))
        # One queue fills all there are, and those that have just started first: it tells itself how many more it needs.
        new = set() if found is not None and view.waiting.count else full - set(self._episode)
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
        ongoing = 0 if found is not None else _by_ongoing(view, self._wait_s)
        wanted = max(by_map, by_queue, ongoing)
        if wanted <= view.active:
            return Scale(wanted=view.active, why=waits(view), figures=figures)
        if ongoing == wanted > by_map:
            slots = sum(each.slots for each in view.replicas if _works(each))
            running = sum(each.running for each in view.replicas)
            why = f"{running} run and {waits(view)}, on {times(round(slots), 'slot')}: added by requests alone"
            return Scale(wanted=wanted, why=why, figures={**figures, "ongoing": float(running + view.waiting.count)})
        if by_map >= by_queue:
            names = ", ".join(sorted(full))
            why = f"{times(len(full))} foreseen above {100 * self._above:.0f} % of its memory ({names}); {waits(view)}"
        else:
            came = "" if found is None else f"; {amount(found.per_s)} {found.measure.replace('_', ' ')}/s came of late"
            why = f"{waits(view)}{came}"
        return Scale(wanted=wanted, why=why, figures=figures)


class Rise:
    """How many replicas what comes keeps busy, by the growth of the queue within `RISE_S`: sooner than means tell."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def look(self, view: ScalingView, now: float) -> float:
        """0 while the queue does not grow. Looks closer together than a second count as one."""
        work = backlog(view)
        while self._seen and self._seen[0][0] < now - RISE_S:
            self._seen.popleft()
        least = min((before for _, before in self._seen), default=work)
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, work))
        ready = sum(map(_works, view.replicas))
        # Over the whole span, however short the growth: a handful that come at once are no flow.
        return ready + (work - least) / RISE_S if work > least else 0.0


class Leaving:
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


def _by_ongoing(view: ScalingView, wait_s: float) -> int:
    """Enough for those that run or wait to have a slot, as an HPA or Ray Serve goes; 0 where none is to be added.

    Where more wait than all ready replicas have slots. Where fewer do, but find none free and one has waited for longer
    than `wait_s`, one more, unless one starts.
    """
    ready = [replica for replica in view.replicas if _works(replica) and replica.slots > 0]
    if not ready or not view.waiting.count:
        return 0
    slots = sum(replica.slots for replica in ready)
    if view.waiting.count > slots:
        ongoing = view.waiting.count + sum(replica.running for replica in view.replicas)
        return whole(ongoing / (slots / len(ready)))
    late = view.waiting.oldest_s > wait_s and _without_slot(view) > 0 and not _starting(view)
    return view.active + 1 if late else 0


def _wait(view: ScalingView) -> float | None:
    """What one that came now would wait, in seconds; `None` where nothing tells."""
    if not view.waiting.count:
        return 0.0
    told = view.waiting.predicted_wait_s
    work = backlog(view)
    if told is None:
        return work / max(view.active, 1) if work > 0 else None
    return max(told, work / max(view.active, 1))
