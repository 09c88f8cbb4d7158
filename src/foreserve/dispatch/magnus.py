"""`magnus`: batches of like length for static engines, in the order of their response ratio (arXiv 2406.04785)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from foreserve.core import Outcome, Work
from foreserve.dispatch.batches import Batch, Batches, Member
from foreserve.dispatch.pace import Mean
from foreserve.dispatch.started import Started
from foreserve.dispatch.tenants import Tenants, checked_weights
from foreserve.errors import ConfigError
from foreserve.foresight.batch_time import BatchShape, BatchTime
from foreserve.foresight.wma import Shape, longest
from foreserve.ports import Pick, Room, Wait

Order = Literal["hrrn", "fcfs"]
Foreseen = Literal["mean", "p50", "p80", "p95"]

MOST_TENANTS_FIRST = 64
"""Tenants that take part in one pick: those that have had least."""

MOST_COMPARED = 128
"""Batches that are looked at to tell where a request would stand, evenly chosen."""

Rank = tuple[bool, float, float]
"""Of a batch: whether its tenants have had their share, its response ratio (negative), the arrival of its oldest."""


class Magnus:
    """`magnus`: a request joins the waiting batch that then wastes least, if that is below `phi`, else begins one.

    Waste is in token reads of the KV cache (see `foresight.wma`). A batch grows to what a replica holds (`adaptive`),
    or to `size` requests. Waste is counted with the answers' lengths at `foreseen`, memory with those at `memory`; a
    request without a forecast is as long as the room that it asks for.

    The batch with the highest response ratio runs next (`hrrn`): the wait of its oldest request over its expected time,
    times the sum of its requests' utilities, so that a full batch goes before one of a single request that has waited
    as long. Or that with the oldest request (`fcfs`). One that can still grow is held
    back until its oldest request has waited `linger_s`. Times are learned from the `k` nearest batches.

    Only batches with a request of a tenant within `burst_tokens` of the one that has had least take part, each tenant's
    tokens divided by `tenant_weights` (1 for those that are not named). What can no longer meet its deadline leaves its
    batch. The dispatcher ends it as expired, at once where it knows how long requests take; until then it runs when
    nothing else waits.

    Requests that come back, since memory ran out or their replica was lost, go into two halves of who was together,
    which nobody joins. Where memory had run out and its prompt's length is known, one that comes back alone runs with
    its answer capped at what fits: `{"most_tokens": n}`.

    Starvation is impossible: every `oldest_every`th pick goes to the batch with the oldest request of those that take
    part, however many shorter ones come.
    Raises ConfigError for options out of range.
    """

    def __init__(
        self,
        phi: float = 20_000.0,
        order: Order = "hrrn",
        adaptive: bool = True,
        size: int | None = None,
        linger_s: float = 0.05,
        k: int = 5,
        foreseen: Foreseen = "p80",
        memory: Foreseen = "p80",
        burst_tokens: float = 65_536.0,
        tenant_weights: Mapping[str, float] | None = None,
        oldest_every: int = 16,
    ) -> None:
        for name, value, least in (
            ("phi", phi, 0),
            ("linger_s", linger_s, 0),
            ("k", k, 1),
            ("size", size, 1),
            ("burst_tokens", burst_tokens, 0),
            ("oldest_every", oldest_every, 2),
        ):
            if value is not None and not value >= least:
                raise ConfigError(f"policy magnus: `{name}` is {value}; it must be at least {least}")
        for name, word, kind in (
            ("order", order, Order),
            ("foreseen", foreseen, Foreseen),
            ("memory", memory, Foreseen),
        ):
            if word not in get_args(kind):
                raise ConfigError(f"policy magnus: `{name}` is {word!r}; valid: {', '.join(get_args(kind))}")
        if adaptive != (size is None):
            raise ConfigError("policy magnus: `size` goes with `adaptive: false`, and only with it")
        weights = checked_weights(tenant_weights, "policy magnus")
        self._phi = phi
        self._order = order
        self._size = size
        self._linger_s = linger_s
        self._foreseen: str = foreseen
        self._memory: str = memory
        self._burst_tokens = burst_tokens
        self._oldest_every = oldest_every
        self._picks = 0
        self.times = BatchTime(k)
        self._fits = 0
        self._batches = Batches(phi)
        self._late = Batches(phi)
        self._aside: dict[str, Work] = {}
        """Placed at the next pick: batches are made to the measure of a replica, and none has been seen yet."""
        self._rows, self._tokens = 0, 0.0
        self._started = Started(self.times)
        self._tenants = Tenants(weights, 1)
        self._accounts: dict[str, str] = {}
        self._charged = Mean()

    # --- requests come and go

    def add(self, work: Work, now: float) -> None:
        account = self._accounts[work.id] = self._tenants.account(work.tenant)
        self._tenants.join(account, 0)
        if work.attempt:
            self._tenants.charge(account, -self._started.came_back(work))
        elif self._rows:
            self._batches.place(self._member(work, account), self._rows, self._tokens)
        else:
            self._aside[work.id] = work

    def remove(self, request_id: str) -> None:
        if request_id not in self._accounts:
            return
        self._tenants.leave(self._accounts.pop(request_id), 0)
        self._aside.pop(request_id, None)
        self._started.forget(request_id)
        self._batches.drop(request_id)
        self._late.drop(request_id)

    def settled(self, outcome: Outcome) -> None:
        """Learn how long the batch took, once the last of it has ended."""
        charged = self._started.ended(outcome)
        if charged is not None:
            account, predicted = charged
            used = outcome.usage.get("prompt_tokens", 0.0) + outcome.usage.get("output_tokens", 0.0)
            self._tenants.charge(account, used - predicted)

    def _back(self, work: Work) -> Member:
        return self._member(work, self._accounts[work.id])

    def _member(self, work: Work, account: str) -> Member:
        """A request in lengths. Its answer is never foreseen longer than what a replica could hold of it.

        Where more room is asked for than its foreseen p80 (`kv: worst_case`), memory is counted with that.
        """
        room = int(work.cost.get("kv_tokens", 1.0))
        if work.forecast is None:
            return Member(work, Shape(max(0, room - 1), 1), 1, account)
        given = work.forecast.input_tokens
        most = max(1, min(work.forecast.most_tokens, int(min(self._tokens, 1e12)) - given))
        waste, memory = (getattr(work.forecast.output, name) for name in (self._foreseen, self._memory))
        if room - given > math.ceil(work.forecast.output.p80):
            memory = max(memory, room - given)
        return Member(work, Shape(given, _within(waste, most)), _within(memory, most), account)

    # --- which batch is next

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        self._measure(rooms)
        for half in self._started.halves(self._back):
            self._batches.put(half)
        pick = self._from(self._batches, rooms, now, strip=True)
        if pick is None and not self._batches:
            pick = self._from(self._late, rooms, now, strip=False)
        return pick

    def _measure(self, rooms: Sequence[Room]) -> None:
        """Batches are made to what the smallest replica holds, so that every one takes them."""
        self._rows = self._size or min(int(room.capacity.get("slots", 1)) for room in rooms)
        self._tokens = min(room.capacity.get("kv_tokens", math.inf) for room in rooms)
        aside, self._aside = self._aside, {}
        for work in aside.values():
            self._batches.place(self._back(work), self._rows, self._tokens)

    def _from(self, batches: Batches, rooms: Sequence[Room], now: float, *, strip: bool) -> Pick | Wait | None:
        """The first in order that some replica takes, as much of it as that takes."""
        until = math.inf
        ripe: list[Batch] = []
        for batch in batches:
            ready = batch.oldest + self._linger_s
            if ready <= now or batches.full(batch):
                ripe.append(batch)
            else:
                until = min(until, ready)
        for batch in self._in_order(ripe, now):
            if strip and (hopeless := [m.work.id for m in batch.members.values() if _hopeless(m.work, now)]):
                for member in batches.cut(batch, hopeless):
                    self._late.place(member, self._rows, self._tokens)
                if not batch.members:
                    continue
                self._estimate([batch])
            works = _taken([member.work for member in batch.members.values()], rooms)
            if works:
                return self._start(batches, batch, works, now)
        return Wait(until=until) if until < math.inf else None

    def _in_order(self, ripe: Sequence[Batch], now: float) -> Iterable[Batch]:
        """By response ratio or age, equals by age; those of tenants that have had their share last."""
        by_age = self._order == "fcfs" or (self._picks + 1) % self._oldest_every == 0
        self._estimate(ripe)
        first = self._first()
        # The first few are all that is asked for, so that sorting them all would be for nothing.
        ranked = [(self._rank(batch, first, by_age, now), at) for at, batch in enumerate(ripe)]
        heapq.heapify(ranked)
        while ranked:
            yield ripe[heapq.heappop(ranked)[1]]

    def _first(self) -> set[str]:
        return set(self._tenants.front(0, self._burst_tokens, MOST_TENANTS_FIRST)[0])

    def _rank(self, batch: Batch, first: set[str], by_age: bool, now: float) -> Rank:
        ratio = 0.0 if by_age else self._ratio(batch, now)
        return first.isdisjoint(batch.accounts), -ratio, batch.oldest

    def _ratio(self, batch: Batch, now: float) -> float:
        assert batch.seconds is not None
        return batch.utility * max(0.0, now - batch.oldest) / batch.seconds

    def ahead(self, work: Work, now: float) -> float:
        """See `ports.Ahead`. Those in batches that now rank before the one that it would join or begin.

        Of other tenants no more than may start before its own has its turn, and a batch of each.
        """
        waiting = float(len(self._accounts))
        if not self._rows or not work.cost:
            return waiting
        account = self._tenants.name(work.tenant)
        member = self._member(work, account)
        batches = self._batches.some(MOST_COMPARED)
        if not batches:
            return 0.0
        self._estimate(batches)
        first, by_age = self._first(), self._order == "fcfs"
        joined = self._batches.joins(member, self._rows, self._tokens)
        own = self._rank_with(member, joined, first, by_age, now)
        before = [len(b.members) for b in batches if b is not joined and self._rank(b, first, by_age, now) < own]
        found = sum(before) * len(self._batches) / len(batches)
        tokens = self._charged.value or float(sum(member.shape))
        most = self._tenants.most_before(work.tenant, 0, self._burst_tokens, tokens, self._rows, MOST_TENANTS_FIRST)
        return min(found, most, waiting)

    def _takes_part(self, tenant: str) -> bool:
        return self._tenants.takes_part(tenant, 0, self._burst_tokens)

    def _rank_with(self, member: Member, joined: Batch | None, first: set[str], by_age: bool, now: float) -> Rank:
        """The rank of this batch with one more request, or of a batch of that alone."""
        if joined is None:
            return bool(first) and member.account not in first and not self._takes_part(member.work.tenant), 0.0, now
        shape = BatchShape(len(joined.members) + 1, longest((joined.longest, member.shape)))
        ratio = (joined.utility + member.work.utility) * (now - joined.oldest) / self.times.estimate([shape])[0]
        last = first.isdisjoint({*joined.accounts, member.account})
        return last and not self._takes_part(member.work.tenant), 0.0 if by_age else -max(0.0, ratio), joined.oldest

    def _estimate(self, batches: Iterable[Batch]) -> None:
        """Times of those that have changed, all of them once the model has."""
        if self._fits != self.times.fits:
            self._fits = self.times.fits
            for batch in (*self._batches, *self._late):
                batch.seconds = None
        unknown = [batch for batch in batches if batch.seconds is None]
        for batch, seconds in zip(unknown, self.times.estimate([batch.shape for batch in unknown]), strict=True):
            batch.seconds = seconds

    # --- it starts

    def _start(self, batches: Batches, batch: Batch, works: Sequence[Work], now: float) -> Pick:
        """Take these out of the queue; what is left of their batch waits on."""
        self._picks += 1
        if len(works) < len(batch.members):
            batch = Batch(batches.cut(batch, [work.id for work in works]))
            self._estimate([batch])
        else:
            batches.take(batch)
        charges = {}
        for work in works:
            account = self._accounts.pop(work.id)
            member = batch.members[work.id]
            charges[work.id] = (account, float(sum(member.shape)))
            self._tenants.leave(account, 0)
            self._tenants.charge(account, charges[work.id][1])
            self._charged.take(charges[work.id][1])
        self._started.start(batch.shape, charges, now)
        plan = None
        forecast = works[0].forecast
        if len(works) == 1 and works[0].crowded and forecast is not None and math.isfinite(self._tokens):
            plan = {"most_tokens": max(1, int(self._tokens) - forecast.input_tokens)}
        return Pick(ids=tuple(batch.members), plan=plan, why=self._why(batch, now))

    def _why(self, batch: Batch, now: float) -> str:
        assert batch.seconds is not None
        waited = now - batch.oldest
        words = f"batch of {len(batch.members)}, waste {batch.waste:,} of {self._phi:,.0f}"
        words += f", {batch.memory:,} of {self._tokens:,.0f} tokens"
        if self._order == "fcfs":
            return f"{words}, its oldest has waited longest: {waited:.1f} s"
        ratio = self._ratio(batch, now)
        if self._picks % self._oldest_every == 0:
            words += f", the oldest batch's turn: {waited:.1f} s"
        words += f", ratio {ratio:.1f} = {waited:.2f} s waited / {batch.seconds:.2f} s expected"
        return words if batch.utility == 1.0 else f"{words} * utility {batch.utility:g}"


def _within(tokens: float, most: int) -> int:
    return min(max(1, math.ceil(tokens)), most)


def _hopeless(work: Work, now: float) -> bool:
    """Whether it can no longer be done by its deadline, as far as can be told."""
    if work.deadline is None:
        return False
    return now + (work.forecast.least_seconds if work.forecast is not None else 0.0) > work.deadline


def _taken(works: Sequence[Work], rooms: Sequence[Room]) -> Sequence[Work]:
    """As many of these, the oldest first, as some room takes together."""
    if any(room.takes(works) for room in rooms):
        return works
    ordered = sorted(works, key=lambda work: work.arrival)
    low, high = 0, len(ordered) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if any(room.takes(ordered[:middle]) for room in rooms) else (low, middle - 1)
    return ordered[:low]
