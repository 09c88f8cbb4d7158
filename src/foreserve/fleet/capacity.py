"""How much one replica can do, learned while it serves, by the mix of its requests.

Source: PreServe (arXiv 2504.03702), Alg. 1: the throughput of a window in which requests were well served, a profile
for each mix of prompt and response tokens. Ours: on line. What replicas get done while they are full is what they can
do, and what they get done otherwise is only less than that; until they have been full the time of a request tells
what full ones would do.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from foreserve.core import Outcome
from foreserve.fleet.autoscaler_need import COARSE, share_held
from foreserve.fleet.capacity_cost import CostState, RequestCost
from foreserve.scaling import Amounts, Capacity, ReplicaView, Waiting

PERIOD_S: Final = 10.0
MOST_PERIOD_S: Final = 120.0
"""Of one measurement; it lasts longer while fewer than `FEW` requests have ended."""

WARM_S: Final = 4.0
"""After a change in how replicas stand nothing is counted for as long as a request takes, and at least so long."""

FEW: Final = 8
FULL: Final = 0.9
"""Replicas are full when so much of them is held on average."""

WAITED_S: Final = 1.0
"""What has waited so long was not only on its way to a slot."""

LEAST_HELD: Final = 0.1
"""Of its memory: what is less tells nothing of how many fit."""

WEIGHT: Final = 0.2
"""Of the newest period, in the moving mean of a mix."""

DRIFT: Final = 0.02
"""Of what they could do beyond what was measured, for each period in which none was full."""

ROOM: Final = 0.5
"""With less than so much of a replica in use there is room that what was measured does not account for."""

FORGET: Final = 0.9
"""How much a period's weight fades with the next one, in how the time of a request grows with those beside it."""

MOST_MIXES: Final = 64
ALIKE: Final = 0.25
"""What is known of a mix counts so much less with each doubling that it is away."""

NEAR: Final = 2
"""Mixes are alike whose amounts for a request differ by no more than so many doublings together."""

_USAGE: Final = {"prompt_tokens": "input_tokens", "output_tokens": "output_tokens"}
"""Measures by the names under which engines count them."""

Mix = tuple[tuple[str, int], ...]
"""By measure, the amount for one request as a power of two."""


def mix_of(amounts: Amounts) -> Mix:
    """How large requests are, of the measures that are not `COARSE`; empty for kinds that have no others."""
    requests = amounts.get("requests", 0.0)
    if requests <= 0:
        return ()
    fine = ((name, amount / requests) for name, amount in sorted(amounts.items()) if name not in COARSE)
    return tuple((name, round(math.log2(each))) for name, each in fine if each > 0)


def done(outcome: Outcome) -> dict[str, float]:
    """What a replica did for one request, by measure; empty when it was never given to one."""
    if outcome.started is None:
        return {}
    used = {_USAGE[name]: amount for name, amount in outcome.usage.items() if name in _USAGE and amount > 0}
    return {"requests": 1.0, "seconds": max(0.0, outcome.ended - outcome.started), **used}


class Known(msgspec.Struct, kw_only=True):
    """What is known of one mix, for each replica and second: plain numbers that survive a restart.

    `full` is what full ones did on average over `periods`, `most` the most that any did in a period. `each` are the
    amounts of one request. `fit` are weighted sums over periods, of 1, x, y, x * x, x * y, for the time y of a request
    with x at once on a replica.
    """

    full: dict[str, float] = {}
    periods: int = 0
    most: dict[str, float] = {}
    each: dict[str, float] = {}
    fit: list[float] = msgspec.field(default_factory=lambda: [0.0] * 5)


class CapacityState(msgspec.Struct, frozen=True, kw_only=True):
    """What has been learned, for `CapacityProfile.restored`; the mix seen last is the last."""

    mixes: list[tuple[Mix, Known]]
    cost: CostState | None = None


class CapacityProfile:
    """Of one service. Pure but for its memory: `ended` hears every outcome, `looked` how replicas stand, every tick."""

    def __init__(self) -> None:
        self._mixes: OrderedDict[Mix, Known] = OrderedDict()
        self._slots = 0.0
        self._beside: float | None = None
        """How many requests a replica holds when it is full, as far as its memory tells."""
        self._since: float | None = None
        self._stood: tuple[int, int, bool] = (0, 0, False)
        """How many are ready and how many leave, and whether the former are full: a period is of one such standing."""
        self._warm = False
        """Whether it has stood so for as long as a request takes."""
        self._took = 0.0
        """Seconds of a request, of late."""
        self._done: dict[str, float] = {}
        self._cost = RequestCost()
        self._first: dict[str, float] = {}
        """All that was done before the first period was over."""

    # --- what it hears

    def ended(self, outcome: Outcome) -> None:
        """One more request has left its replica."""
        amounts = done(outcome)
        if amounts:
            fine = {name: amount for name, amount in amounts.items() if name not in COARSE}
            self._cost.ended(fine, amounts["seconds"])
        for name, amount in amounts.items():
            self._done[name] = self._done.get(name, 0.0) + amount
            if not self._mixes:
                self._first[name] = self._first.get(name, 0.0) + amount

    def looked(self, replicas: Sequence[ReplicaView], waiting: Waiting, now: float) -> None:
        """So they stand. A period that has gone on for long enough is learned from; one that has changed is not."""
        ready = [replica for replica in replicas if replica.phase == "ready"]
        self._slots = max((replica.slots for replica in ready), default=self._slots)
        self._at_once(ready)
        leaving = sum(replica.phase in ("isolated", "draining") for replica in replicas)
        full = _full(ready, waiting)
        stood = (len(ready), leaving, full)
        if self._since is None or stood != self._stood:
            self._begin(stood, now, warm=False)
            return
        elapsed = now - self._since
        requests = self._done.get("requests", 0.0)
        if requests:
            self._took = self._done["seconds"] / requests
        if not self._warm:
            # What ends first began as things stood before.
            if elapsed >= max(WARM_S, self._took) and (requests or elapsed >= MOST_PERIOD_S):
                self._begin(stood, now, warm=True)
        elif elapsed >= MOST_PERIOD_S or (elapsed >= max(PERIOD_S, 2 * self._took) and requests >= FEW):
            if requests and ready and not leaving:
                self._learn({name: amount / (elapsed * len(ready)) for name, amount in self._done.items()}, full)
            self._begin(stood, now, warm=True)

    def _at_once(self, ready: Sequence[ReplicaView]) -> None:
        """How many a replica can run side by side where its memory holds fewer than it has slots."""
        for replica in ready:
            held = share_held(replica)
            if held is not None and held > LEAST_HELD and replica.running >= FEW and replica.slots > 0:
                fits = min(replica.running / held, replica.slots)
                self._beside = fits if self._beside is None else self._beside + WEIGHT * (fits - self._beside)

    def _begin(self, stood: tuple[int, int, bool], now: float, warm: bool) -> None:
        self._since, self._stood, self._done, self._warm = now, stood, {}, warm

    def _learn(self, per_s: dict[str, float], full: bool) -> None:
        mix = mix_of(per_s)
        known = self._mixes.pop(mix, None) or Known()
        self._mixes[mix] = known
        while len(self._mixes) > MOST_MIXES:
            self._mixes.popitem(last=False)
        requests = per_s["requests"]
        known.each = {name: amount / requests for name, amount in per_s.items()}
        known.most = {name: max(amount, known.most.get(name, 0.0)) for name, amount in per_s.items()}
        beside, took = per_s["seconds"], per_s["seconds"] / requests  # Little's law: how many were there at once
        new = (1.0, beside, took, beside * beside, beside * took)
        known.fit = [FORGET * old + one for old, one in zip(known.fit, new, strict=True)]
        if full:
            known.periods += 1
            known.full = {
                name: amount + (1 - WEIGHT) * (known.full.get(name, amount) - amount) for name, amount in per_s.items()
            }
        else:
            self._spared(mix, known.each, per_s)

    def _spared(self, mix: Mix, each: Amounts, per_s: Amounts) -> None:
        """They did this with room to spare, so they can do it, and more.

        It tells of every mix by what its requests cost: that in which replicas were once full may not come again, and
        what was measured too low keeps so many replicas that none is ever full.
        """
        # As far as there would be no more room: between no gain from more at once, and as much as there are more.
        could = math.sqrt(max(1.0, ROOM * self._at_most() / max(per_s["seconds"], 1.0)))
        _, cost = self._each(each)
        for other, known in self._mixes.items():
            if not known.full:
                continue
            times = 1.0
            if other != mix:
                _, its_cost = self._each(known.each)
                if cost is None or its_cost is None:
                    continue
                times = cost / its_cost
            ratio = times * per_s["requests"] / known.full["requests"]
            grown = 1.0 + DRIFT * max(0.0, could * ratio - 1.0)
            did = per_s if other == mix else {}
            known.full = {name: max(amount * grown, did.get(name, 0.0)) for name, amount in known.full.items()}

    # --- what it knows

    def at(self, mix: Amounts) -> Capacity | None:
        """What one replica can do of a load with this mix (amounts of any span of time), as far as is known."""
        each, cost = self._each(mix)
        told = self._of_all(each, cost, mix_of(mix)) if cost is not None else None
        if told is None:
            return self._of_alike(mix)
        of_cost, why, measured = told
        rate = of_cost / (cost or 1.0)
        return Capacity(per_s={name: rate * amount for name, amount in each.items()}, why=why, measured=measured)

    def _each(self, amounts: Amounts) -> tuple[dict[str, float], float | None]:
        """One request of these, and what it costs; `None` where that is not known, or not of all its measures."""
        requests = amounts.get("requests", 0.0)
        if requests <= 0:
            return {}, None
        each = {name: amount / requests for name, amount in amounts.items() if amount > 0}
        return each, self._cost.of({name: amount for name, amount in each.items() if name not in COARSE})

    def _of_all(self, each: Amounts, cost: float | None, wanted: Mix) -> tuple[float, str, bool] | None:
        """What one replica does in a second in units of `cost`, by all mixes, the near ones most; and how we know.

        Measured on full replicas where any were, else guessed as in `_guess`.
        """
        found: list[tuple[float, Known, float]] = []
        for mix, known in self._mixes.items():
            of_mix, its_cost = self._each(known.each)
            if its_cost is not None and set(of_mix) - {"seconds"} == set(each) - {"seconds"}:
                found.append((ALIKE ** _apart(mix, wanted), known, its_cost))
        full = [(near * known.periods, known.full["requests"] * its) for near, known, its in found if known.full]
        if full:
            times = sum(known.periods for _, known, _ in found)
            of_cost = sum(weight * value for weight, value in full) / sum(weight for weight, _ in full)
            return of_cost, f"measured {_times(times)} on full replicas{_of(each)}", True
        if not found or self._slots <= 0:
            return None
        fit = [0.0] * 5
        for near, known, its in found:
            weight, x, y, xx, xy = known.fit
            fit = [a + near * b for a, b in zip(fit, (weight, x, y / its, xx, xy / its), strict=True)]
        at_once = self._at_most()
        took = _took(fit, at_once)
        if took <= 0 or cost is None:
            return None
        why = f"a first guess: {at_once:.3g} at once, {took * cost:.3g} s each{_of(each)}; no replica was full yet"
        return at_once / took, why, False

    def _at_most(self) -> float:
        """How many one replica runs side by side."""
        return self._slots if self._beside is None else min(self._slots, self._beside)

    def _of_alike(self, mix: Amounts) -> Capacity | None:
        """What is known of the nearest mix."""
        if not self._mixes:
            return self._guess(_known_of(self._first)) if self._first.get("requests", 0.0) >= FEW else None
        wanted = mix_of(mix)
        newest = list(reversed(self._mixes))
        near = sorted(newest, key=lambda each: _apart(each, wanted) if wanted else 0)
        measured = [each for each in near if self._mixes[each].full]
        if measured and (not wanted or _apart(measured[0], wanted) <= max(NEAR, _apart(near[0], wanted))):
            known = self._mixes[measured[0]]
            why = f"measured {_times(known.periods)} on full replicas{_of(known.each)}"
            return Capacity(per_s=dict(known.full), why=why)
        return self._guess(self._mixes[near[0]])

    def _guess(self, known: Known) -> Capacity | None:
        """What full replicas would do, by how long a request takes and how that grows with those beside it."""
        if self._slots <= 0:
            return None
        at_once = self._at_most()
        took = _took(known.fit, at_once)
        if took <= 0:
            return None
        rate = at_once / took
        guessed = {name: rate * amount for name, amount in known.each.items()}
        per_s = {name: max(amount, known.most.get(name, 0.0)) for name, amount in guessed.items()}
        why = f"a first guess: {at_once:.3g} at once, {took:.3g} s each{_of(known.each)}; no replica was full yet"
        return Capacity(per_s=per_s, why=why, measured=False)

    # --- over a restart

    def state(self) -> CapacityState:
        """What `restored` takes."""
        return CapacityState(mixes=list(self._mixes.items()), cost=self._cost.state())

    @classmethod
    def restored(cls, state: CapacityState) -> CapacityProfile:
        """As it was; what is not sound is left out."""
        made = cls()
        if state.cost is not None:
            made._cost = RequestCost.restored(state.cost)
        for mix, known in state.mixes[-MOST_MIXES:]:
            numbers = [*known.full.values(), *known.most.values(), *known.each.values(), *known.fit]
            if len(known.fit) == 5 and all(math.isfinite(number) and number >= 0 for number in numbers):
                made._mixes[mix] = known
        return made


def _full(ready: Sequence[ReplicaView], waiting: Waiting) -> bool:
    """Whether they get done what they can.

    Their slots are taken; or whole batches wait (a batch engine always has some waiting for the next one, which says
    nothing); or their memory is foreseen to be full, and so something has waited.
    """
    slots = sum(replica.slots for replica in ready)
    if not ready or slots <= 0:
        return False
    if sum(replica.running for replica in ready) >= FULL * slots or waiting.count >= slots:
        return True
    held = [share for share in map(share_held, ready) if share is not None]
    return waiting.oldest_s >= WAITED_S and len(held) == len(ready) and sum(held) >= FULL * len(held)


def _known_of(all_done: Amounts) -> Known:
    """What can be said of a mix before any period is over: how large requests are, and how long they take."""
    requests = all_done["requests"]
    each = {name: amount / requests for name, amount in all_done.items()}
    return Known(each=each, fit=[1.0, 1.0, each["seconds"], 1.0, each["seconds"]])


def _apart(one: Mix, other: Mix) -> int:
    """Doublings between two mixes; a measure that only one of them has counts as many."""
    a, b = dict(one), dict(other)
    return sum(abs(a[name] - b[name]) if name in a and name in b else 8 for name in {**a, **b})


def _took(fit: Sequence[float], beside: float) -> float:
    """The time of a request with so many at once on its replica: a line that does not fall, through what was seen."""
    weight, x, y, xx, xy = fit
    if weight <= 0:
        return 0.0
    spread = weight * xx - x * x
    slope = max(0.0, (weight * xy - x * y) / spread) if spread > 1e-9 * weight * xx else 0.0
    # Far from what was seen a line says much too much: no longer than in proportion to how many there are.
    took = (y + slope * (weight * beside - x)) / weight
    usual = x / weight
    return min(took, y / weight * max(1.0, beside / usual)) if usual > 0 else took


def _times(periods: int) -> str:
    return "once" if periods == 1 else f"{periods} times"


def _of(each: Amounts) -> str:
    """The mix, by the amounts of one request, in words."""
    told = [f"{amount:,.0f} {name.replace('_', ' ')}" for name, amount in each.items() if name not in COARSE]
    return f", at about {' and '.join(told)} a request" if told else ""
