"""What holds any scaling policy back: bounds, zero, cool-downs, hysteresis. Each says what it has changed.

They go round one another and round a user's own policy alike; `app` puts `Bounded` and `ToZero` round every one.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from foreserve.fleet.autoscaler_need import filled, whole
from foreserve.fleet.autoscaler_words import amount, times
from foreserve.scaling import Scale, ScalingPolicy, ScalingView

WINDOW_S: Final = 60.0
"""Where nothing is foreseen: as long as a window is by default."""

WORTH_STARTS: Final = 2.0
"""What is wanted again within so many starts was not worth stopping."""

DUE: Final = 0.5
"""Requests that are expected in the window in which a replica would be up: so many, and the load is due. Its high
quantile would tell of nights what errors of the day are like."""


TRUSTED: Final = 0.5
"""Of the load: a forecast that was further off than that of late wakes nobody, nor does one that was never tried."""

TRUSTED_WINDOWS: Final = 30
"""So many windows at the least must have told so: after a burst an hour is not yet known to repeat."""


def due(view: ScalingView) -> bool:
    """Whether requests are expected by when a replica would be up, by a forecast that has earned to be believed."""
    told = view.forecast
    if told is None or told.error is None:
        return False
    believed = told.error <= TRUSTED and told.judged_s >= TRUSTED_WINDOWS * told.window_s
    return believed and told.expected.get("requests", 0.0) >= DUE


def changed(scale: Scale, wanted: int, why: str) -> Scale:
    """`scale` with another number, and why it is another."""
    return msgspec.structs.replace(scale, wanted=wanted, why=f"{scale.why}; {why}" if scale.why else why)


class Bounded:
    """No fewer than the least, no more than the most."""

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy

    def decide(self, view: ScalingView, now: float) -> Scale:
        scale = self._policy.decide(view, now)
        if scale.wanted < view.least:
            return changed(scale, view.least, f"the least is {view.least}")
        if scale.wanted > view.most:
            return changed(scale, view.most, f"{scale.wanted} would be wanted, the most is {view.most}")
        return scale


class ToZero:
    """A service whose least is 0 goes to none when nothing has come for `idle_s`, and back when one waits or is due.

    Elsewhere there is at least one. What is due within the time of a start is waited for. From none it wakes for a
    forecast that was right of late alone: for any other the first request does.
    """

    def __init__(self, policy: ScalingPolicy, idle_s: float) -> None:
        self._policy = policy
        self._idle_s = idle_s

    def decide(self, view: ScalingView, now: float) -> Scale:
        scale = self._policy.decide(view, now)
        if view.least > 0:
            return scale
        expected = due(view)
        nothing = not view.waiting.count and not any(replica.running for replica in view.replicas)
        if view.active == 0:
            if not view.waiting.count and not expected:
                return msgspec.structs.replace(scale, wanted=0, why="at zero; nothing waits and none is due")
            why = "one waits and there is no replica" if view.waiting.count else "load is due by when one would be up"
            return msgspec.structs.replace(scale, wanted=max(1, scale.wanted), why=f"{why}; {scale.why}")
        known = all(replica.known for replica in view.replicas if replica.phase == "ready")
        if nothing and known and view.idle_s >= self._idle_s:
            if expected:
                return changed(scale, max(1, scale.wanted), "idle, but load is due within the time of a start")
            return msgspec.structs.replace(scale, wanted=0, why=f"nothing has come for {amount(view.idle_s)} s")
        return scale if scale.wanted >= 1 else changed(scale, 1, f"the last is kept until idle for {self._idle_s:g} s")


class CoolUp:
    """After it has added it adds no more for `up_s`, which is by default one start: what was added must first count."""

    def __init__(self, policy: ScalingPolicy, up_s: float | None = None) -> None:
        self._policy = policy
        self._up_s = up_s
        self._until = 0.0
        self._to = 0

    def decide(self, view: ScalingView, now: float) -> Scale:
        scale = self._policy.decide(view, now)
        if scale.wanted <= view.active:
            return scale
        if now < self._until and scale.wanted > max(view.active, self._to):
            held = max(view.active, self._to)
            return changed(scale, held, f"no more than {held} for {amount(self._until - now)} s: some are starting")
        if now >= self._until:
            self._to, self._until = scale.wanted, now + (view.start_s if self._up_s is None else self._up_s)
        return scale


class CoolDown:
    """Fewer at most once per `down_s`, and only as few as all decisions since then asked for.

    By default that is one window of the forecast, and at least two starts. So it is a cool-down and a stabilisation at
    once: what was wanted a moment ago may be wanted again. No more than `part` of them go at once, for a load that is
    gone may have an outage for its reason, and be back; one may always go.
    """

    def __init__(self, policy: ScalingPolicy, down_s: float | None = None, part: float = 1.0) -> None:
        self._policy = policy
        self._down_s = down_s
        self._part = part
        self._wants: deque[tuple[float, int]] = deque()
        """Falling: each is more than any later one, so there are never more of them than numbers of replicas."""
        self._since: float | None = None
        """When the evidence begins."""

    def decide(self, view: ScalingView, now: float) -> Scale:
        scale = self._policy.decide(view, now)
        down_s = self._down_s
        if down_s is None:
            window_s = WINDOW_S if view.forecast is None else view.forecast.window_s
            down_s = max(window_s, WORTH_STARTS * view.start_s)
        if self._since is None:
            self._since = now
        while self._wants and self._wants[-1][1] <= scale.wanted:
            self._wants.pop()
        self._wants.append((now, scale.wanted))
        while self._wants[0][0] < now - down_s:
            self._wants.popleft()
        if scale.wanted >= view.active:
            return scale
        if now < self._since + down_s:
            return changed(scale, view.active, f"fewer only in {amount(self._since + down_s - now)} s")
        most = self._wants[0][1]
        if most >= view.active:
            left = amount(self._wants[0][0] + down_s - now)
            return changed(scale, view.active, f"{times(view.active)} kept for {left} s: so many were wanted of late")
        self._since = now
        kept = view.active - max(1, int(self._part * view.active))
        if kept > most:
            return changed(scale, kept, f"no more than {view.active - kept} at once")
        return scale if most == scale.wanted else changed(scale, most, f"{most} were wanted within {down_s:g} s")


class Careful:
    """While what one replica can do is only guessed, no more than twice as many as are ready or would be filled.

    The latter by what runs and waits now, what waits taken to be as large as what runs: a second opinion that needs no
    guess. A service that changes its number all the time is never measured. Before there is a guess only twice as many.
    """

    def __init__(self, policy: ScalingPolicy) -> None:
        self._policy = policy

    def decide(self, view: ScalingView, now: float) -> Scale:
        scale = self._policy.decide(view, now)
        if view.capacity is not None and view.capacity.measured:
            return scale
        ready = sum(replica.phase == "ready" for replica in view.replicas)
        would = 0.0 if view.capacity is None else filled(view)
        most = max(2 * ready, view.active, whole(2 * would), 1)
        if scale.wanted <= most:
            return scale
        return changed(scale, most, f"{scale.wanted} would be wanted by a guess of what one can do; {most} for now")


class Hysteresis:
    """More where the need and `up` ask for more, fewer where even the need and `down` ask for fewer; between them hold.

    Where a policy tells its need in fractions of replicas (the figure `need`); elsewhere it changes nothing.
    """

    def __init__(self, policy: ScalingPolicy, up: float = 0.0, down: float = 0.0) -> None:
        self._policy = policy
        self._up = up
        self._down = down

    def decide(self, view: ScalingView, now: float) -> Scale:
        scale = self._policy.decide(view, now)
        needed = scale.figures.get("need")
        if needed is None:
            return scale
        more, fewer = max(scale.wanted, whole(needed + self._up)), max(scale.wanted, whole(needed + self._down))
        if more > view.active:
            return scale if more == scale.wanted else changed(scale, more, f"{self._up:g} of a replica to spare")
        if fewer < view.active:
            return scale if fewer == scale.wanted else changed(scale, fewer, f"{self._down:g} of a replica to spare")
        if scale.wanted < view.active:
            return changed(scale, view.active, f"a need of {amount(needed)} is too near to go lower")
        return scale
