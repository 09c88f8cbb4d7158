"""The order of a continuous engine's queue: by response ratio, fair to tenants, mindful of deadlines and of room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from foreserve.core import Outcome, OutcomeKind, Work
from foreserve.dispatch.buckets import LEAST_S, Waiting
from foreserve.dispatch.keeping import Keeping
from foreserve.dispatch.lines import STANDINGS, Lines, standing
from foreserve.dispatch.pace import Mean
from foreserve.dispatch.tenants import Tenants, checked_weights
from foreserve.errors import ConfigError
from foreserve.ports import Pick, Room, Wait

MOST_TRIED = 16
"""Requests whose fit is tried at one pick."""

LONG = 10
"""A long wait, in mean expected times: whoever waits so long gets a turn in any case."""

UNKNOWN_S = 1.0
"""The expected time of a request while nothing is known of any."""


class ResponseRatio:
    """`hrrn`: the highest response ratio next, utility * (wait + patience) / expected seconds.

    `patience` is `aging` times the mean expected time of requests of late. The more of it, the nearer is the order to
    shortest first; with `aging` 0 it is each request's own time, which is the textbook's highest response ratio next
    (HRRN). The order is exact to 5 %. The work for one pick does not depend on how many wait.

    What will most likely meet its deadline (`sure` times its expected time is left) goes before what perhaps will, and
    that before what can no longer (less than its forecast's `least_seconds`). The dispatcher ends the last as expired,
    at once where it knows how long requests take; until then it runs when nothing else can.

    Tenants: only who is within `burst_tokens` of the one that has had least, of those that wait, takes part. Tokens are
    counted as predicted when a request is picked, set right when it has ended, and divided by `tenant_weights` (1 for
    those that are not named).

    Starvation is impossible. Every `oldest_every`th pick goes to the one that has waited longest, once that is 10 mean
    expected times or more; so a request with n older ones starts after at most `oldest_every` * (n + 1) such picks of
    those in which its tenant takes part, however many shorter ones come; a tenant takes part again once each of the
    others that wait has had `burst_tokens` more than it. Only what may not meet its deadline may be left aside, which
    ends at its deadline. What fits no room is passed over at most `most_passed` times (see `Keeping`).

    With `engine_priority` the plan tells the engine the order: `{"priority": n}`, lower is earlier. Without forecasts
    all are taken to need the mean time of those that have ended. Raises ConfigError for options out of range.
    """

    def __init__(
        self,
        aging: float = 4.0,
        sure: float = 1.0,
        burst_tokens: float = 8192.0,
        tenant_weights: Mapping[str, float] | None = None,
        oldest_every: int = 16,
        most_passed: int = 32,
        engine_priority: bool = False,
    ) -> None:
        for name, value, least in (
            ("aging", aging, 0),
            ("sure", sure, 0),
            ("burst_tokens", burst_tokens, 0),
            ("oldest_every", oldest_every, 2),
            ("most_passed", most_passed, 1),
        ):
            if not value >= least:
                raise ConfigError(f"policy hrrn: `{name}` is {value}; it must be at least {least}")
        weights = checked_weights(tenant_weights, "policy hrrn")
        self._aging = aging
        self._sure = sure
        self._oldest_every = oldest_every
        self._engine_priority = engine_priority
        self._tenants = Tenants(weights, len(STANDINGS))
        self._lines = Lines(self._tenants, burst_tokens, own=aging == 0)
        self._keeping = Keeping(most_passed)
        self._waiting: dict[str, Waiting] = {}
        self._alone: tuple[Waiting, float] | None = None
        """What came when nothing waited, and when: it stands in no line until there is a choice, as there seldom is."""
        self._charged: dict[str, tuple[str, float]] = {}  # the account and tokens of what was picked and has not ended
        self._expected = Mean()
        self._taken = Mean()
        self._tokens = Mean()
        self._order = 0
        self._picks = 0

    # --- what waits

    def add(self, work: Work, now: float) -> None:
        """See `BatchPolicy`. What comes again, after its replica was lost, is not charged twice."""
        self._line_up()
        self._refund(work.id)
        forecast = work.forecast
        seconds = forecast.seconds if forecast is not None else self._taken.value or UNKNOWN_S
        self._order += 1
        waiting = Waiting(work, self._tenants.account(work.tenant), seconds, self._order)
        self._expected.take(waiting.seconds)
        if work.deadline is not None:
            waiting.late_at = work.deadline - (forecast.least_seconds if forecast is not None else 0.0)
            waiting.unsure_at = min(work.deadline - self._sure * waiting.seconds, waiting.late_at)
        if self._waiting:
            self._lines.put(waiting, now)
        else:
            self._alone = waiting, now
        self._waiting[work.id] = waiting

    def remove(self, request_id: str) -> None:
        """See `BatchPolicy`."""
        waiting = self._waiting.pop(request_id, None)
        if waiting is None:
            return
        if self._alone is not None and waiting is self._alone[0]:
            self._alone = None
            return
        self._lines.take_out(waiting)
        self._keeping.forget(waiting)

    def _line_up(self) -> None:
        """Before anything that the lines have a part in."""
        if self._alone is not None:
            self._lines.put(*self._alone)
            self._alone = None

    # --- who is next

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        """See `BatchPolicy`."""
        if self._alone is not None:
            waiting = self._alone[0]
            if not self._is_turn_of_oldest and (among := self._keeping.rooms_for(waiting, rooms, now)) is not None:
                waiting.standing = standing(waiting, now)
                return self._start(waiting, among, "", 0, now)
            self._line_up()
        self._lines.move(now)
        passed: list[Waiting] = []
        for waiting, reason in self._in_order(now):
            among = self._keeping.rooms_for(waiting, rooms, now)
            if among is not None:
                self._keeping.passed_over(passed, rooms, now)
                return self._start(waiting, among, reason, len(passed), now)
            passed.append(waiting)
        return None

    def _in_order(self, now: float) -> Iterator[tuple[Waiting, str]]:
        """Who would go next, and then next, with what is special about it; each once, about `MOST_TRIED` in all."""
        kept, oldest = self._keeping.kept, None
        if kept is not None:
            yield kept, "room was kept for it"
        if self._is_turn_of_oldest:
            oldest = self._lines.oldest(now - LONG * self._mean(), now)
            if oldest is not None and oldest is not kept:
                yield oldest, "it has waited longest"
        for _, waiting in zip(range(MOST_TRIED), self._lines.by_ratio(now, self._aging * self._mean()), strict=False):
            if waiting is not kept and waiting is not oldest:
                yield waiting, ""

    @property
    def _is_turn_of_oldest(self) -> bool:
        return (self._picks + 1) % self._oldest_every == 0

    def _mean(self) -> float:
        """The mean expected time of late, in seconds."""
        return self._expected.value or UNKNOWN_S

    def _start(self, waiting: Waiting, among: tuple[str, ...], reason: str, before: int, now: float) -> Pick:
        """It leaves the queue and its tenant is charged."""
        work, count = waiting.work, len(self._waiting)
        self._picks += 1
        why = self._why(waiting, reason, before, count, now)
        self.remove(work.id)
        forecast = work.forecast
        tokens = forecast.input_tokens + forecast.output.mean if forecast is not None else self._tokens.value or 1.0
        self._charged[work.id] = (waiting.account, tokens)
        self._tenants.charge(waiting.account, tokens)
        plan = {"priority": self._picks} if self._engine_priority else None
        return Pick(ids=(work.id,), plan=plan, why=why, among=among)

    def _why(self, waiting: Waiting, reason: str, before: int, count: int, now: float) -> str:
        work = waiting.work
        wait = max(0.0, now - work.arrival)
        patience = self._aging * self._mean() if self._aging else waiting.seconds
        ratio = (wait + patience) / waiting.weight
        utility = "" if work.utility == 1.0 else f", utility {work.utility:g}"
        place = f"{count} waiting" if reason else f"{_ordinal(before + 1)} of {count} waiting"
        skipped = f"; {before} before it found no room" if before else ""
        standing = ("", "; it may miss its deadline", "; it can no longer meet its deadline")[waiting.standing]
        tokens = self._tenants.tokens(waiting.account)
        return (
            f"{reason and reason + '; '}ratio {ratio:.1f}: waited {wait:.1f} s and {patience:.2f} s of patience, "
            f"{waiting.seconds:.2f} s expected{utility}; {place}{skipped}{standing}; "
            f"tenant {waiting.account} at {tokens:,.0f} tokens"
        )

    def ahead(self, work: Work, now: float) -> float:
        """See `ports.Ahead`. Those whose ratio is better now; who comes later and overtakes it is not among them."""
        self._line_up()
        patience = self._aging * self._mean()
        if work.forecast is None:
            return self._lines.better(work.tenant, None, now, patience, self._tokens.value or 1.0)
        own = patience if self._aging else work.forecast.seconds
        score = work.utility * own / max(work.forecast.seconds, LEAST_S)
        tokens = self._tokens.value or work.forecast.input_tokens + work.forecast.output.mean
        return self._lines.better(work.tenant, score, now, patience, tokens)

    # --- how it ended

    def settled(self, outcome: Outcome) -> None:
        """Set its tenant's tokens right, and learn the time of requests that come without a forecast."""
        self.remove(outcome.id)
        self._line_up()
        account, predicted = self._charged.pop(outcome.id, ("", 0.0))
        usage = outcome.usage
        if account and ("prompt_tokens" in usage or "output_tokens" in usage):
            tokens = usage.get("prompt_tokens", 0.0) + usage.get("output_tokens", 0.0)
            self._tenants.charge(account, tokens - predicted)
            self._tokens.take(tokens)
        if outcome.kind is OutcomeKind.DONE and outcome.started is not None:
            self._taken.take(outcome.ended - outcome.started)

    def _refund(self, request_id: str) -> None:
        account, tokens = self._charged.pop(request_id, ("", 0.0))
        if account:
            self._tenants.charge(account, -tokens)


def _ordinal(n: int) -> str:
    ending = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"
