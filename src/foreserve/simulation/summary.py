"""The headline figures of runs side by side, as words: what the terminal's table and the report's both show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from foreserve.core import OutcomeKind
from foreserve.simulation.figures import Result, ServiceFigures, Tally
from foreserve.simulation.histogram import Distribution
from foreserve.simulation.survey import Live

Better = Literal["lower", "higher"] | None

MOST_REASONS = 4

MOST_FINDINGS = 5
"""Of one run, that are told in words."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of every run. `changes` are shares of the first run's (0.1: a tenth more), `None` where none can be.

    `better` says in which direction it is meant to go; `group` is where it belongs.
    """

    group: str
    label: str
    values: list[str]
    changes: list[float | None]
    better: Better = None
    live: str = ""


def summary(results: Sequence[Result], live: Live | None, service: str | None = None) -> list[Row]:
    """Of one service, or (`None`) of all together."""
    tallies = [_tally(result, service) for result in results]
    rows = [row for name in _LATENCIES for row in _latency(name, tallies, live)]
    ended = [result.ended_s for result in results]
    rate = _Rows("throughput", "higher", rows)
    rate.add(
        "goodput (done in time), requests/s", [_per(t.good, s) for t, s in zip(tallies, ended, strict=True)], number
    )
    rate.add("output tokens/s", [_per(t.output_tokens, s) for t, s in zip(tallies, ended, strict=True)], number)
    rate.add("prompt tokens/s", [_per(t.prompt_tokens, s) for t, s in zip(tallies, ended, strict=True)], number)
    houses = [_services(result, service) for result in results]
    use = _Rows("replicas", None, rows)
    use.add("replica-hours", [sum(each.replica_hours for each in house) for house in houses], number, better="lower")
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
    _outcomes(rows, tallies, live)
    return rows


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader should know, once where it is the same of every run and else with the run's name."""
    told: dict[str, list[str]] = {}
    for result in results:
        broken = [f"does not hold: {each}" for each in result.findings[:MOST_FINDINGS]]
        if len(result.findings) > MOST_FINDINGS:
            broken.append(f"does not hold: {len(result.findings) - MOST_FINDINGS} further findings")
        for note in dict.fromkeys([*result.notes, *broken]):
            told.setdefault(note, []).append(result.name)
    return [
        line
        for note, names in told.items()
        for line in ([note] if len(names) == len(results) else [f"{name}: {note}" for name in names])
    ]


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
    reasons: dict[str, int] = {}
    for tally in tallies:
        for reason, n in tally.reasons.items():
            reasons[reason] = max(reasons.get(reason, 0), n)
    why = _Rows("why not done", None, rows)
    for reason in sorted(reasons, key=lambda each: (-reasons[each], each))[:MOST_REASONS]:
        why.add(reason, [float(tally.reasons.get(reason, 0)) for tally in tallies], count)


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
