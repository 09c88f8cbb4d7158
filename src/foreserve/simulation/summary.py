"""The headline figures of runs side by side, as words: what the terminal's table and the report's both show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from foreserve.core import OutcomeKind
from foreserve.simulation.figures import Result, ServiceFigures, Tally, cost
from foreserve.simulation.histogram import Distribution
from foreserve.simulation.survey import Live

Better = Literal["lower", "higher"] | None

MOST_REASONS = 4


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of every run. `changes` are shares of the first run's (0.1: a tenth more), `None` where none can be.

    `better` says in which direction it is meant to go; `group` is where it belongs. `off` is the first run's difference
    to what was measured live, as a share of that.
    """

    group: str
    label: str
    values: list[str]
    changes: list[float | None]
    better: Better = None
    live: str = ""
    off: float | None = None


def summary(results: Sequence[Result], live: Live | None, service: str | None = None) -> list[Row]:
    """Of one service, or (`None`) of all together."""
    tallies = [_tally(result, service) for result in results]
    rows = [row for name in _LATENCIES for row in _latency(name, tallies, live)]
    ended = [result.ended_s for result in results]
    rate = _Rows("throughput", "higher", rows)
    for label, of in (
        ("goodput (done in time), requests/s", "good"),
        ("output tokens/s", "output_tokens"),
        ("prompt tokens/s", "prompt_tokens"),
    ):
        values = [_per(getattr(t, of), s) for t, s in zip(tallies, ended, strict=True)]
        told = None if live is None or not live.ended_s else _per(getattr(live, of), live.ended_s)
        rate.add(label, values, number, live=told)
    houses = [_services(result, service) for result in results]
    use = _Rows("replicas", None, rows)
    use.add("replica-hours", [sum(each.replica_hours for each in house) for house in houses], number, better="lower")
    scaled = [[each.scaling for each in house if each.scaling is not None] for house in houses]
    if any(scaled):
        use.add("replicas started", [float(sum(each.starts for each in house)) for house in scaled], count)
        use.add("replicas stopped", [float(sum(each.stops for each in house)) for house in scaled], count)
        use.add("changes of their number", [float(sum(each.changes for each in house)) for house in scaled], count)
    use.add("needed at full batches, replicas", [sum(each.need_replicas for each in house) for house in houses], number)
    use.add("time in which a replica is busy", [_mean(house, lambda each: each.busy) for house in houses], percent)
    use.add("slots in use", [_mean(house, lambda each: each.slots_used) for house in houses], percent)
    use.add("KV cache in use", [_mean(house, lambda each: each.kv_used) for house in houses], percent)
    if any(tally.cached_tokens for tally in tallies):
        hits = [_per(tally.cached_tokens, tally.prompt_tokens) for tally in tallies]
        use.add("prompt tokens found in the prefix cache", hits, percent, better="higher")
    use.add("most that waited", [float(max(each.most_waiting for each in house)) for house in houses], count)
    preempted = [float(sum(each.preemptions for each in house)) for house in houses]
    use.add("preemptions", preempted, count, better="lower")
    _costs(rows, results, service)
    _outcomes(rows, tallies, live)
    return rows


def _costs(rows: list[Row], results: Sequence[Result], service: str | None) -> None:
    costs = []
    for result in results:
        if result.cost is None:
            return
        hours = sum(each.replica_hours for each in _services(result, service))
        costs.append(cost(result.cost.price, hours, _tally(result, service)))
    money = _Rows("cost", "lower", rows)
    money.add("cost", [each.total for each in costs], number)
    money.add("cost per 1,000 requests done", [each.per_1000_done for each in costs], number)
    money.add("cost per million output tokens", [each.per_million_output_tokens for each in costs], number)


_LATENCIES = (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end-to-end"), ("wait", "queue wait"))


def _latency(names: tuple[str, str], tallies: Sequence[Tally], live: Live | None) -> list[Row]:
    key, label = names
    spread: list[Distribution | None] = [getattr(tally, key) for tally in tallies]
    told: Distribution | None = getattr(live, key, None)
    rows: list[Row] = []
    latency = _Rows("latency", "lower", rows)
    for at in ("p50", "p90", "p99"):
        values = [None if each is None else float(getattr(each, at)) for each in spread]
        if any(value is not None for value in values):
            latency.add(f"{label} {at}", values, duration, live=None if told is None else float(getattr(told, at)))
    return rows


def _outcomes(rows: list[Row], tallies: Sequence[Tally], live: Live | None) -> None:
    ends = _Rows("outcomes", None, rows)
    for kind in OutcomeKind:
        values = [float(tally.outcomes[kind.value]) for tally in tallies]
        told = None if live is None else float(live.outcomes[kind.value])
        if any(values) or told or kind is OutcomeKind.DONE:
            better: Better = "higher" if kind is OutcomeKind.DONE else "lower"
            ends.add(kind.value, values, count, better=better, live=told)
    if any(tally.again for tally in tallies):
        ends.add("run again", [float(tally.again) for tally in tallies], count, better="lower")
    if any(tally.retries for tally in tallies):
        ends.add("sent again by clients", [float(tally.retries) for tally in tallies], count, better="lower")
    worded = [_in_words(tally) for tally in tallies]
    most: Counter[str] = Counter()
    for reasons in worded:
        most |= reasons
    shown = sorted(most, key=lambda each: (-most[each], each))
    if len(shown) > MOST_REASONS + 1:  # one more takes no more room than a row for the rest of them
        shown = shown[:MOST_REASONS]
    why = _Rows("why not done", None, rows)
    for reason in shown:
        why.add(reason, [float(reasons[reason]) for reasons in worded], count)
    if len(shown) < len(most):
        rest = [float(reasons.total() - sum(reasons[each] for each in shown)) for reasons in worded]
        why.add(f"{len(most) - len(shown)} other reasons", rest, count)


def _in_words(tally: Tally) -> Counter[str]:
    """Its reasons, those that differ in figures alone as one. Their sum is what was not done."""
    found: Counter[str] = Counter()
    for reason, n in tally.reasons.items():
        found[next((plain for begins, plain in _PLAIN if begins in reason), reason)] += n
    return found


_PLAIN: Final = (
    ("the predicted wait of", "a wait predicted beyond the limit"),
    ("predicted wait and", "a wait predicted beyond the deadline"),
    ("the queue is full", "the queue was full"),
    ("it could no longer be done", "waited until it was too late for the deadline"),
    ("the most that the queue allows", "waited as long as the queue allows"),
    ("no replica was ready", "no replica was ready in time"),
)
"""What a reason has in it, and its words without figures."""


class _Rows:
    """Adds rows of one group."""

    def __init__(self, group: str, better: Better, rows: list[Row]) -> None:
        self._group, self._better, self._rows = group, better, rows

    def add(
        self,
        label: str,
        values: Sequence[float | None],
        told: Callable[[float], str],
        *,
        better: Better = None,
        live: float | None = None,
    ) -> None:
        first = values[0]
        self._rows.append(
            Row(
                group=self._group,
                label=label,
                values=["-" if value is None else told(value) for value in values],
                changes=[None if not first or value is None else value / first - 1 for value in values],
                better=better or self._better,
                live="" if live is None else told(live),
                off=None if not live or first is None else first / live - 1,
            )
        )


def _tally(result: Result, service: str | None) -> Tally:
    return result.total if service is None else result.services[service].tally


def _services(result: Result, service: str | None) -> list[ServiceFigures]:
    return list(result.services.values()) if service is None else [result.services[service]]


def _mean(house: Sequence[ServiceFigures], of: Callable[[ServiceFigures], float | None]) -> float | None:
    """Weighed by replica-hours."""
    told = [(value, each.replica_hours) for each in house if (value := of(each)) is not None]
    hours = sum(weight for _, weight in told)
    return sum(value * weight for value, weight in told) / hours if hours else None


def _per(amount: float, whole: float) -> float:
    return amount / whole if whole else 0.0


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return span(seconds)


def span(seconds: float) -> str:
    """A long time in two units."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{seconds:.3g} s"


def number(value: float) -> str:
    """With three significant digits at least, and never with an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0 < value < 1 else f"{value:.{1 if value >= 10 else 2}f}"


def percent(share: float) -> str:
    """As a share of a hundred."""
    return f"{100 * share:.1f} %"


def count(value: float) -> str:
    """A whole number."""
    return f"{value:,.0f}"


def change(value: float | None) -> str:
    """A difference to the first run: `+12 %`; nothing where it is none."""
    if value is None:
        return ""
    if abs(value) < 0.0005:
        return "="
    return f"×{1 + value:.1f}" if value >= 9 else f"{100 * value:+.{1 if abs(value) < 0.1 else 0}f} %"
