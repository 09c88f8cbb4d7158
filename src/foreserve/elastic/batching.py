"""`elastic`: batches of like requests, each with the token setting that makes all that wait worth most together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.dispatch.arrivals import Arrivals
from foreserve.elastic.forming import PLANS, Forming, Likeness, Open, fitting
from foreserve.elastic.outlook import Ahead, Outlook
from foreserve.elastic.planner import After, Plan, nothing, plan
from foreserve.elastic.pressed import cut
from foreserve.elastic.profile import UNKNOWN, Profile, Timing
from foreserve.elastic.turns import Turns
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait

OVERDUE = 2.0
"""Another is not waited for any longer than so many times the expected time until it comes."""


MOST_PLANNED = 32
"""Batches that a plan looks at, exactly or greedily: what is due later says nothing about which is first."""


class _Run(msgspec.Struct, frozen=True):
    """A batch that was started."""

    setting: str
    size: int
    length: int
    at: float


class Elastic:
    """Whenever a replica is free, the batches that wait are planned as a whole and the first of the plan runs.

    Requests share a batch that come within `wait_s` of each other, that have about as long until their deadlines (they
    differ by at most the share `span`), about the same utility (between the same two of `utility_classes`), inputs
    that are about as long, and of whose settings at least half are common, the best of each among them; up to `size` of
    them. What a setting takes
    is in the `profile`, stretched by what has been seen since; what an answer under it is worth is in each request's
    `plans`. The planner looks at `budget` states at the most. Batches go by their earliest deadline; a request without
    one should be done within `patience_s`, and is worth little later, but not nothing, and has its turn (see `Turns`).

    Where the first leaves room, with `fill`, others run along that lose no accuracy by its setting, as far as the plan
    is then worth no less.

    With `foresight` a plan is also worth what it leaves for requests that are expected to come (see `Outlook`). Where
    there is no time for all of them under the most accurate setting, the batch that brings most is cut from all that
    waits, however it was formed (see `cut`).

    A batch is held open while no other is ready, until its first has waited `wait_s`, and only while one more could
    still be taken in without missing the earliest deadline, and while another is expected by then.

    What cannot be done by its deadline under the fastest setting is not planned for: the dispatcher ends it, and until
    then it runs when nothing else waits. Settings that take more than `memory_mb` beside the weights are not used. Who
    comes back runs alone.
    Raises ConfigError for options out of range.
    """

    def __init__(
        self,
        profile: Profile = UNKNOWN,
        size: int = 64,
        wait_s: float = 0.02,
        span: float = 0.25,
        utility_classes: tuple[float, ...] = (0.75, 1.5),
        patience_s: float = 1.0,
        budget: int = 2000,
        memory_mb: float | None = None,
        fill: bool = True,
        foresight: bool = True,
    ) -> None:
        for name, value, least in (("size", size, 1), ("wait_s", wait_s, 0), ("span", span, 0), ("budget", budget, 1)):
            if not value >= least:
                raise ConfigError(f"policy elastic: `{name}` is {value}; it must be at least {least}")
        for name, amount in (("patience_s", patience_s), ("memory_mb", memory_mb)):
            if amount is not None and not amount > 0:
                raise ConfigError(f"policy elastic: `{name}` is {amount}; it must be more than 0")
        if list(utility_classes) != sorted(utility_classes):
            raise ConfigError(f"policy elastic: `utility_classes` are {list(utility_classes)}; they must rise")
        self.timing = Timing(profile)
        self._wait_s = wait_s
        self._size = size
        self._budget = budget
        self._fill = fill
        self._memory = math.inf if memory_mb is None else memory_mb * 2**20
        like = Likeness(wait_s=wait_s, span=span, classes=utility_classes, patience_s=patience_s, size=size)
        self._forming = Forming(like, self.timing)
        self._turns = Turns(self._forming.due_of)
        self._arrivals = Arrivals(wait_s / 2)
        self._outlook = Outlook(self.timing, size) if foresight else None
        self._back: dict[str, Work] = {}
        self._late: dict[str, Work] = {}
        self._here: dict[str, _Run | None] = {}
        """All that came and have not ended, with the batch that they run in."""

    # --- requests come and go

    def add(self, work: Work, now: float) -> None:
        if work.id not in self._here:
            self._arrivals.came(now)
        self._here[work.id] = None
        known = self.timing.profile.seconds
        if work.plans is not None and not known.keys() >= work.plans.keys():
            # What was never measured cannot be planned with; one that allows nothing else runs as it is.
            plans = {each: worth for each, worth in work.plans.items() if each in known}
            work = msgspec.structs.replace(work, plans=plans or {next(iter(known)): 1.0})
        if work.attempt:
            self._back[work.id] = work
            return
        length = self._forming.add(work)
        if self._outlook is not None:
            has_s = max(0.0, self._forming.due[work.id] - work.arrival)
            self._outlook.came(now, has_s, length, work.utility, work.plans or PLANS)

    def remove(self, request_id: str) -> None:
        self._back.pop(request_id, None)
        self._late.pop(request_id, None)
        self._forming.drop(request_id)

    def settled(self, outcome: Outcome) -> None:
        """Learn how long its batch took, once for each batch."""
        self.remove(outcome.id)
        if outcome.id not in self._here:
            return
        run = self._here.pop(outcome.id)
        self._arrivals.left(outcome.ended)
        if run is None or outcome.kind is not OutcomeKind.DONE:
            return
        self.timing.learn(run.setting, run.size, run.length, outcome.ended - run.at)
        for other in outcome.beside:
            if self._here.get(other) is run:
                self._here[other] = None

    # --- which are next, and under which setting

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        for work in self._back.values():
            if any(room.takes([work]) for room in rooms):
                return self._alone(work, "since its last attempt came to nothing", now)
        ready, growing, until = self._waiting(now)
        if until is not None and not ready:
            return Wait(until=until)
        if not ready:
            late = next(iter(self._late.values()), None)
            return None if late is None else self._alone(late, "since nothing else waits: it is late", now)
        room = max(rooms, key=lambda each: each.free.get("slots", 1.0))
        most = max(1, int(room.free.get("slots", 1.0)))
        if turn := self._turn([*ready, *growing], most, now):
            return turn
        urgency = {id(batch): self._urgency(batch, now) for batch in (*ready, *growing)}
        batches = [each for part in (ready, growing) for each in sorted(part, key=lambda each: urgency[id(each)])]
        batches = batches[:MOST_PLANNED]
        ahead = None if self._outlook is None else self._outlook.ahead(now)
        if ahead is not None and (pressed := self._pressed(batches, most, ahead, now)):
            return pressed
        after = ahead or nothing
        planned = [batch.planned(self.timing, self._forming.due, self._memory) for batch in batches]
        found = plan(planned, now, self._budget, after)
        first = next((at for at, chosen in enumerate(found.settings[: len(ready)]) if chosen is not None), 0)
        batch, chosen = batches[first], found.settings[first]
        # What is not worth its time runs all the same where nothing else does: better than to stand idle.
        setting = self._fastest(batch) if chosen is None else batch.plans[chosen]
        if chosen is None:
            works = [*self._forming.take(batch, self._in_time(batch, setting, most, now))]
        else:
            works = [*self._forming.take(batch, most)]
            others = [(each, plan) for each, plan in zip(batches, found.settings, strict=False) if each is not batch]
            if self._fill:
                works += self._joining(works, setting, batch, others, most, found, now, after)
        why = f"{setting}, the first of {len(batches)} batches planned to be worth {found.worth:.2f}"
        if found.exact < len(batches):
            why += f", {found.exact} of them exactly"
        return self._start(works, setting, batch.length, why, now)

    def _pressed(self, batches: Sequence[Open], most: int, ahead: Ahead, now: float) -> Pick | None:
        """Where there is no time for all: the batch that brings most, of whatever waits."""
        # Who waits already takes of the time until then as well.
        ahead = ahead.beside(sum(len(batch.works) for batch in batches))
        pace = ahead.pace(now)
        if pace is None:
            return None
        waiting = [(batch.length, [*batch.works.values()]) for batch in batches]
        size = min(most, self._size)
        found = cut(waiting, self._forming.due_of, self.timing, now, size, pace, ahead.price(now), self._memory)
        if found is None:
            return None
        for work in found.works:
            self._forming.drop(work.id)
        why = f"{found.setting}, the batch worth most ({found.worth:.2f}) while a second brings {pace:.0f}"
        return self._start(found.works, found.setting, found.length, why, now)

    def _turn(self, batches: Sequence[Open], most: int, now: float) -> Pick | None:
        """A pass of those that are overdue, where it is their turn: under the fastest setting of the first."""
        theirs = self._turns.theirs((work for batch in batches for work in batch.works.values()), now)
        if not theirs:
            return None
        first = theirs[0]
        length = self._length(first)
        alike = [work for work in theirs if self._length(work) == length][: min(most, self._size)]
        setting = self._quickest(first.plans or PLANS, len(alike), length)
        works = [work for work in alike if setting in (work.plans or PLANS)]
        for work in works:
            self._forming.drop(work.id)
        return self._start(works, setting, length, f"{setting}, the turn of those without a deadline", now)

    def _waiting(self, now: float) -> tuple[list[Open], list[Open], float | None]:
        """Batches that are ready, those that may grow, and when the first of these will be ready. Without late ones."""
        ready: list[Open] = []
        growing: list[Open] = []
        until: float | None = None
        for batch in [*self._forming]:
            fastest = self.timing.fastest(dict.fromkeys(batch.plans, 1.0), 1, batch.length)
            hopeless = [w for w in batch.works.values() if w.deadline is not None and now + fastest > w.deadline]
            for work in hopeless:
                self._forming.drop(work.id)
                self._late[work.id] = work
            if not batch.works:
                continue
            closes = self._closes(batch)
            if closes <= now:
                ready.append(batch)
            else:
                growing.append(batch)
                until = closes if until is None else min(until, closes)
        return ready, growing, until

    def _closes(self, batch: Open) -> float:
        """When it is held open no longer."""
        size = len(batch.works)
        if size >= self._size:
            return -math.inf
        one_more = self.timing.fastest(dict.fromkeys(batch.plans, 1.0), size + 1, batch.length)
        closes = min(batch.first + self._wait_s, self._due(batch) - one_more)
        since, gap = self._arrivals.since, self._arrivals.gap()
        if since + gap > closes:
            return -math.inf
        return min(closes, since + OVERDUE * gap)

    def _due(self, batch: Open) -> float:
        return min(self._forming.due[each] for each in batch.works)

    def _urgency(self, batch: Open, now: float) -> float:
        """When its first is due that is not overdue, for those are late whatever is done."""
        works = batch.works.values()
        return min((self._forming.due[w.id] for w in works if not self._turns.overdue(w, now)), default=math.inf)

    def _length(self, work: Work) -> int:
        return self.timing.bucket(int(work.cost.get("tokens", 1.0)))

    def _fastest(self, batch: Open) -> str:
        return self._quickest(batch.plans, len(batch.works), batch.length)

    def _quickest(self, settings: Iterable[str], count: int, length: int) -> str:
        fits = fitting(settings, self.timing, count, length, self._memory)
        return min(fits, key=lambda each: self.timing.seconds(each, count, length))

    def _joining(
        self,
        works: Sequence[Work],
        setting: str,
        first: Open,
        others: Sequence[tuple[Open, int | None]],
        most: int,
        found: Plan,
        now: float,
        after: After,
    ) -> Sequence[Work]:
        """Others that run along, as many as leave the whole plan worth as much: they take less time so."""
        extra = self._candidates(works, setting, first.length, others, min(most, self._size), now)
        while extra:
            joined = Open(works[0], first.length, first.has_s, first.kind)
            for work in (*works[1:], *extra):
                joined.works[work.id] = work
            joined.plans = (setting,)
            ids = {work.id for work in extra}
            left = [each for each in (batch.without(ids) for batch, _ in others) if each is not None]
            due = {**self._forming.due, **{work.id: self._forming.due_of(work) for work in works}}
            planned = [each.planned(self.timing, due, self._memory) for each in (joined, *left)]
            if plan(planned, now, self._budget, after).total >= found.total - 1e-9:
                for work in extra:
                    self._forming.drop(work.id)
                return extra
            extra = extra[: len(extra) // 2]
        return ()

    def _candidates(
        self,
        works: Sequence[Work],
        setting: str,
        length: int,
        others: Sequence[tuple[Open, int | None]],
        most: int,
        now: float,
    ) -> list[Work]:
        """Those that there is room for, who lose nothing by the setting, while `works` are still done in time."""
        found: list[Work] = []
        due = min(self._forming.due_of(work) for work in works)
        for batch, chosen in others:
            if batch.length != length or setting not in batch.plans:
                continue
            for work in sorted(batch.works.values(), key=self._forming.due_of):
                count = len(works) + len(found) + 1
                if count > most or now + self.timing.seconds(setting, count, length) > due:
                    return found
                plans = work.plans or PLANS
                if chosen is None or plans[setting] >= plans[batch.plans[chosen]]:
                    found.append(work)
        return found

    def _in_time(self, batch: Open, setting: str, most: int, now: float) -> int:
        """How many of it, the first due first, are done in time together, where all of them are not; at least one."""
        due = sorted(self._forming.due[each] for each in batch.works)[:most]
        fits = [n for n in range(1, len(due) + 1) if now + self.timing.seconds(setting, n, batch.length) <= due[0]]
        return max(fits, default=1)

    def _alone(self, work: Work, why: str, now: float) -> Pick:
        length = self._length(work)
        setting = self._quickest(work.plans or PLANS, 1, length)
        return self._start([work], setting, length, f"{setting}, alone, {why}", now)

    def _start(self, works: Sequence[Work], setting: str, length: int, why: str, now: float) -> Pick:
        """They leave the queue."""
        run = _Run(setting, len(works), length, now)
        self._turns.passed(works, now)
        for work in works:
            self._here[work.id] = run
            self._back.pop(work.id, None)
            self._late.pop(work.id, None)
        expected = self.timing.seconds(setting, len(works), length)
        waited = now - min(work.arrival for work in works)
        words = f"batch of {len(works)} under {why}; {expected:.3f} s expected, waited {waited:.3f} s"
        return Pick(ids=tuple(work.id for work in works), plan=setting, why=words)
