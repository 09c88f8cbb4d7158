"""The lines of waiting work: by standing towards the deadline, by tenant, and by response ratio."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence

from foreserve.dispatch.buckets import Buckets, Waiting
from foreserve.dispatch.tenants import Tenants

SURE, UNSURE, LATE = range(3)
"""A request's standing: it will most likely meet its deadline, it may, it can no longer. Without a deadline: sure."""

STANDINGS = (SURE, UNSURE, LATE)

MOST_LOOKED_AT = 8
"""Tenants whose best requests are compared at one pick, those that have had least."""

MOST_MOVED = 8
"""Requests whose standing is brought up to date at one pick, beyond those that would be picked."""


class Lines:
    """Everything that waits. A tenant takes part while it is within `burst` tokens of who has had least in its line.

    With `own`, a request's patience is its own expected time (see `Buckets`).
    """

    def __init__(self, tenants: Tenants, burst: float, own: bool) -> None:
        self._tenants = tenants
        self._burst = burst
        self._own = own
        self._buckets: dict[tuple[int, str], Buckets] = {}
        self._changes: list[tuple[float, int, Waiting]] = []  # when whose standing will change
        self._live = 0
        self._sure = 0

    def put(self, waiting: Waiting, now: float) -> None:
        """It begins to wait, or its standing has changed."""
        waiting.standing = standing(waiting, now)
        changes = _until(waiting)
        if changes < math.inf:
            heapq.heappush(self._changes, (changes, waiting.order, waiting))
        key = (waiting.standing, waiting.account)
        buckets = self._buckets.get(key)
        if buckets is None:
            buckets = self._buckets[key] = Buckets(self._own)
        buckets.add(waiting)
        self._tenants.join(waiting.account, waiting.standing)
        self._live += 1
        self._sure += waiting.standing == SURE

    def take_out(self, waiting: Waiting) -> None:
        """Remove one that waits."""
        key = (waiting.standing, waiting.account)
        self._buckets[key].remove(waiting)
        if not self._buckets[key]:
            del self._buckets[key]
        self._tenants.leave(waiting.account, waiting.standing)
        self._live -= 1
        self._sure -= waiting.standing == SURE
        if not self._live:
            self._changes.clear()
        elif len(self._changes) > 2 * self._live + 64:
            self._changes = [entry for entry in self._changes if entry[2].bucket is not None]
            heapq.heapify(self._changes)

    def move(self, now: float) -> None:
        """Bring standings up to date."""
        for _ in range(MOST_MOVED):
            if not self._changes or self._changes[0][0] >= now:
                return
            waiting = heapq.heappop(self._changes)[2]
            if waiting.bucket is not None and now > _until(waiting):
                self._again(waiting, now)

    def oldest(self, before: float, now: float) -> Waiting | None:
        """Who has waited longest of the sure, in the tenants that take part, where it came `before` or then."""
        names, _ = self._tenants.front(SURE, self._burst, MOST_LOOKED_AT)
        heads = (self._buckets[SURE, name].oldest() for name in names)
        oldest = min(heads, key=lambda waiting: (waiting.work.arrival, waiting.order), default=None)
        return oldest if oldest is not None and oldest.work.arrival <= before and now <= _until(oldest) else None

    def better(self, tenant: str, score: float | None, now: float, patience: float, tokens: float) -> float:
        """About how many would start before a request of `tenant` that is sure and has this ratio now.

        Its own tenant's with a better one, and of each other tenant those with a better one, as far as that may be
        ahead with its tokens, at `tokens` a request; `None` is a ratio below all. Tenants that are not looked at are
        taken to be like those that are.
        """
        name = self._tenants.name(tenant)
        own = self._buckets.get((SURE, name))
        if score is None:
            mine = float(self._tenants.waiting(name))
        else:
            mine = own.better(score, now, patience) if own is not None else 0.0
        level = self._tenants.level(tenant) + mine * self._tenants.weighed(name, tokens)
        near, far = self._tenants.front(SURE, self._burst, MOST_LOOKED_AT)
        others = [other for other in near + far if other != name]
        if not others:
            return mine
        found = 0.0
        for other in others:
            buckets = self._buckets[SURE, other]
            better = len(buckets) if score is None else buckets.better(score, now, patience)
            least, most = self._tenants.before(other, level, self._burst, tokens)
            found += min(max(least, min(better, most)), len(buckets))
        there = self._tenants.count(SURE) - (own is not None)
        return mine + found * there / len(others)

    def by_ratio(self, now: float, patience: float) -> Iterator[Waiting]:
        """By standing, then tenants that take part before others, then ratio; within a bucket by arrival.

        Nothing may be put in or taken out while this goes on.
        """
        for standing in STANDINGS:
            for names in self._tenants.front(standing, self._burst, MOST_LOOKED_AT):
                yield from self._merged([self._buckets[standing, name] for name in names], now, patience)

    def _merged(self, groups: Sequence[Buckets], now: float, patience: float) -> Iterator[Waiting]:
        scores = [buckets.scores(now, patience) for buckets in groups]
        seen: dict[tuple[int, int], Iterator[Waiting]] = {}  # of the buckets whose head was given, the rest
        nexts: dict[tuple[int, int], Waiting] = {}
        while groups:
            rows = [int(score.argmax()) for score in scores]
            best, back = max((float(score[row]), -at) for at, (score, row) in enumerate(zip(scores, rows, strict=True)))
            if best == -math.inf:
                return
            index, row = -back, rows[-back]
            buckets, key = groups[index], (index, row)
            waiting = nexts.get(key) or buckets.head(row)
            if not seen and now > _until(waiting):
                # More have changed than one turn moves; this one is not to be taken for what it no longer is.
                self._again(waiting, now)
                scores[index] = buckets.scores(now, patience)
                continue
            yield waiting
            if key not in seen:
                assert waiting.bucket is not None
                seen[key] = waiting.bucket.in_order()
                next(seen[key])
            after = next(seen[key], None)
            if after is None:
                scores[index][row] = -math.inf
            else:
                nexts[key] = after
                scores[index][row] = buckets.score(after, now, patience)

    def _again(self, waiting: Waiting, now: float) -> None:
        self.take_out(waiting)
        self.put(waiting, now)


def standing(waiting: Waiting, now: float) -> int:
    """One of `STANDINGS`."""
    return SURE if now <= waiting.unsure_at else UNSURE if now <= waiting.late_at else LATE


def _until(waiting: Waiting) -> float:
    """When its standing ends."""
    return (waiting.unsure_at, waiting.late_at, math.inf)[waiting.standing]
