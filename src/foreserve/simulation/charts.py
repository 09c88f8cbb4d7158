"""The pictures of a report, as data that plotly.js draws: each says what it shows, in which unit, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from foreserve.core import OutcomeKind
from foreserve.simulation.figures import Result, Series, ServiceFigures
from foreserve.simulation.histogram import Distribution
from foreserve.simulation.survey import Live

COLOURS: Final = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#0891b2", "#a16207", "#4b5563")
"""Of the runs, in order; they begin anew after the last."""

LIVE: Final = "#111827"
QUIET: Final = "#9ca3af"
KINDS: Final = {"done": "#10b981", "shed": "#f59e0b", "expired": "#ef4444", "cancelled": "#9ca3af", "failed": "#7f1d1d"}

MOST_TENANTS: Final = 12


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """One picture. `unit` is that of its y axis; `note` says in words what it lacks. `timed` ones zoom together."""

    title: str
    says: str
    traces: list[dict[str, Any]]
    unit: str
    across: str = ""
    timed: bool = False
    log: str = ""
    stacked: bool = False
    legend: bool = False
    percent: str = ""
    note: str = ""


def colour(index: int) -> str:
    """Of the run of this number."""
    return COLOURS[index % len(COLOURS)]


class Clock:
    """Where a window stands on the x axis: its time of day where the trace tells, else the time since its start."""

    def __init__(self, epoch: float, longest_s: float) -> None:
        self.dated = epoch > 0
        self._epoch = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)
        units = (
            (172_800.0, 86_400.0, "days"),
            (7200.0, 3600.0, "hours"),
            (300.0, 60.0, "minutes"),
            (0.0, 1.0, "seconds"),
        )
        self._unit_s, unit = next((s, name) for least, s, name in units if longest_s >= least)
        self.title = "time (UTC)" if self.dated else f"time since the start, {unit}"

    def places(self, series: Series, n: int) -> list[Any]:
        """Of the first `n` windows, their middles."""
        middles = [(index + 0.5) * series.width_s for index in range(n)]
        if self.dated:
            return [(self._epoch + timedelta(seconds=at)).strftime("%Y-%m-%d %H:%M:%S.%f") for at in middles]
        return [_short(at / self._unit_s) for at in middles]


def charts(results: Sequence[Result], service: str, live: Live | None) -> list[Chart]:
    """Of one service, the runs in each in their colours. `live`: what the recording tells of it."""
    runs = [(result.name, result.services[service]) for result in results]
    clock = Clock(results[0].epoch, max(result.ended_s for result in results))
    return [
        *_load(runs, clock),
        *_queues(runs, clock),
        *_latencies(runs, clock),
        *_replicas(runs, clock),
        _curve(runs, "ttft", "TTFT", "Time to first token", live),
        _curve(runs, "e2e", "e2e", "End-to-end latency", live),
        *_ends(runs, clock, live),
        *_tenants(runs),
    ]


Runs = Sequence[tuple[str, ServiceFigures]]


def _load(runs: Runs, clock: Clock) -> list[Chart]:
    """Of the first run: the others have the same trace."""
    series = runs[0][1].series
    tokens = [
        _line(clock, series, series.input_tokens, "prompts", "#6366f1"),
        _line(clock, series, series.output_tokens, "answers", "#14b8a6"),
    ]
    arrivals = [_line(clock, series, series.arrivals, "arrivals", "#374151", fill=True)]
    window = f"in windows of {_seconds(series.width_s)}"
    return [
        Chart(title="Load", says=f"Requests that came, {window}", traces=arrivals, unit="requests/s", timed=True),
        Chart(
            title="Tokens asked for",
            says="Prompts as they came, and the true length of the answers to them",
            traces=tokens,
            unit="tokens/s",
            timed=True,
            legend=True,
        ),
    ]


def _queues(runs: Runs, clock: Clock) -> list[Chart]:
    return [
        Chart(
            title="Queue",
            says="Requests that waited for a replica, mean of each window",
            traces=_by_run(runs, clock, lambda s: s.waiting),
            unit="requests",
            timed=True,
        ),
        Chart(
            title="Running",
            says="Requests on replicas, mean of each window",
            traces=_by_run(runs, clock, lambda s: s.running),
            unit="requests",
            timed=True,
        ),
    ]


def _latencies(runs: Runs, clock: Clock) -> list[Chart]:
    told: list[
        tuple[str, str, Callable[[Series], Sequence[float | None]], Callable[[Series], Sequence[float | None]]]
    ] = [
        ("Time to first token", "TTFT", lambda s: s.ttft_p50, lambda s: s.ttft_p99),
        ("End-to-end latency", "Latency", lambda s: s.e2e_p50, lambda s: s.e2e_p99),
    ]
    made: list[Chart] = []
    for title, name, p50, p99 in told:
        traces = [
            *_by_run(runs, clock, p99, suffix=" p99"),
            *_by_run(runs, clock, p50, suffix=" p50", dash="dot"),
        ]
        none = [name for name, each in runs if not any(value is not None for value in p50(each.series))]
        made.append(
            Chart(
                title=f"{title} over time",
                says=f"{name} by the time of arrival: p99 drawn through, p50 dotted",
                traces=traces,
                unit="seconds",
                timed=True,
                log="y",
                note=f"No line of {', '.join(none)}: nothing was done." if none else "",
            )
        )
    return made


def _replicas(runs: Runs, clock: Clock) -> list[Chart]:
    series = runs[0][1].series
    need = _line(clock, series, series.need, "need", QUIET, fill=True)
    kv = _by_run(runs, clock, lambda s: s.kv_used)
    silent = [name for name, each in runs if each.kv_used is None]
    return [
        Chart(
            title="Replicas against need",
            says="Ready replicas of each run; grey: what came, as replicas kept busy at full batches",
            traces=[need, *_by_run(runs, clock, lambda s: s.ready, shape="hv")],
            unit="replicas",
            timed=True,
        ),
        Chart(
            title="How full replicas were",
            says="Slots in use drawn through, KV cache dotted",
            traces=[
                *_by_run(runs, clock, lambda s: s.slots_used, suffix=" slots"),
                *({**trace, "line": {**trace["line"], "dash": "dot"}, "name": f"{trace['name']} KV"} for trace in kv),
            ],
            unit="",
            percent="y",
            timed=True,
            note=f"No KV line of {', '.join(silent)}: its engines did not tell." if silent else "",
        ),
    ]


def _curve(runs: Runs, key: str, short: str, title: str, live: Live | None) -> Chart:
    traces = [
        _steps(getattr(each.tally, key), name, colour(at)) for at, (name, each) in enumerate(runs)
        if getattr(each.tally, key) is not None
    ]  # fmt: skip
    told: Distribution | None = getattr(live, key, None)
    if told is not None:
        traces.append(_steps(told, "live", LIVE, dash="dash"))
    note = "" if told is not None else f"No live curve: the trace does not tell {short} of live requests."
    return Chart(
        title=f"{title}: distribution",
        says=f"Share of done requests with at most this {short}" + ("; dashed: live" if told is not None else ""),
        traces=traces,
        unit="",
        across="seconds",
        log="x",
        percent="y",
        note=note,
    )


def _ends(runs: Runs, clock: Clock, live: Live | None) -> list[Chart]:
    rows = [(name, each.tally.outcomes) for name, each in runs]
    if live is not None:
        rows.append(("live", live.outcomes))
    rows.reverse()  # the first on top
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": kind.value,
            "y": [name for name, _ in rows],
            "x": [_share(outcomes[kind.value], sum(outcomes.values())) for _, outcomes in rows],
            "customdata": [outcomes[kind.value] for _, outcomes in rows],
            "hovertemplate": "%{y}: %{customdata:,} " + kind.value + " (%{x:.1%})<extra></extra>",
            "marker": {"color": KINDS[kind.value]},
        }
        for kind in OutcomeKind
        if any(outcomes[kind.value] for _, outcomes in rows)
    ]
    lost = _by_run(runs, clock, lambda s: [sum(each) for each in zip(*_not_done(s), strict=True)])
    return [
        Chart(
            title="Outcomes",
            says="How requests ended" + ("" if live is not None else "; the trace tells no live ones"),
            traces=bars,
            unit="",
            percent="x",
            stacked=True,
            legend=True,
        ),
        Chart(
            title="Not done",
            says="Requests a second that ended in any other way than done, when they ended",
            traces=lost,
            unit="requests/s",
            timed=True,
        ),
    ]


def _not_done(series: Series) -> list[list[float]]:
    return [values for kind, values in series.ended.items() if kind != OutcomeKind.DONE.value]


def _tenants(runs: Runs) -> list[Chart]:
    requests: dict[str, int] = {}
    for _, each in runs:
        for tenant, tally in each.tenants.items():
            requests[tenant] = max(requests.get(tenant, 0), tally.requests)
    tenants = sorted(requests, key=lambda tenant: (-requests[tenant], tenant))
    if len(tenants) < 2:
        return []
    shown = tenants[:MOST_TENANTS][::-1]
    rest = f"The {len(tenants) - MOST_TENANTS} smallest are left out." if len(tenants) > MOST_TENANTS else ""

    def bars(value: Callable[[ServiceFigures, str], float | None]) -> list[dict[str, Any]]:
        return [
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "y": shown,
                "x": [value(each, tenant) for tenant in shown],
                "hovertemplate": "%{y}: %{x:.1%}<extra>" + name + "</extra>",
                "marker": {"color": colour(at)},
            }
            for at, (name, each) in reversed(list(enumerate(runs)))
        ]

    def tokens(each: ServiceFigures, tenant: str) -> float | None:
        return _share(each.tenants[tenant].output_tokens, each.tally.output_tokens) if tenant in each.tenants else None

    def good(each: ServiceFigures, tenant: str) -> float | None:
        return _share(each.tenants[tenant].good, each.tenants[tenant].requests) if tenant in each.tenants else None

    return [
        Chart(
            title="Tenants: what they got",
            says="Each tenant's share of all output tokens, by who asked most",
            traces=bars(tokens),
            unit="",
            percent="x",
            note=rest,
        ),
        Chart(
            title="Tenants: done in time",
            says="Share of each tenant's own requests that were done within their deadline",
            traces=bars(good),
            unit="",
            percent="x",
            note=rest,
        ),
    ]


# --- lines


def _by_run(
    runs: Runs,
    clock: Clock,
    of: Callable[[Series], Sequence[float | None]],
    *,
    suffix: str = "",
    dash: str = "solid",
    shape: str = "linear",
) -> list[dict[str, Any]]:
    return [
        _line(clock, each.series, of(each.series), f"{name}{suffix}", colour(at), dash=dash, shape=shape)
        for at, (name, each) in enumerate(runs)
        if any(value is not None for value in of(each.series))
    ]


def _line(
    clock: Clock,
    series: Series,
    values: Sequence[float | None],
    name: str,
    tint: str,
    *,
    dash: str = "solid",
    shape: str = "linear",
    fill: bool = False,
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": clock.places(series, len(values)),
        "y": [None if value is None else _short(value) for value in values],
        "line": {"color": tint, "width": 1.8 if dash == "solid" else 1.4, "dash": dash, "shape": shape},
    }
    return {**trace, "fill": "tozeroy", "fillcolor": f"{tint}22"} if fill else trace


def _steps(told: Distribution, name: str, tint: str, dash: str = "solid") -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [_short(max(value, 1e-4)) for value, _ in told.curve],
        "y": [_short(share) for _, share in told.curve],
        "line": {"color": tint, "width": 1.8, "dash": dash, "shape": "hv"},
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _seconds(width_s: float) -> str:
    return f"{width_s:g} s" if width_s < 120 else f"{width_s / 60:g} min"
