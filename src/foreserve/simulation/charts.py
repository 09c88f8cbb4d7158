"""The pictures of a report: load, queues, latencies, replicas, outcomes and tenants, every run in its own colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from foreserve.core import OutcomeKind
from foreserve.simulation.chart import (
    KINDS,
    LIVE,
    QUIET,
    Chart,
    Clock,
    Runs,
    by_run,
    colour,
    line,
    seconds,
    share,
    steps,
)
from foreserve.simulation.figures import Result, Series, ServiceFigures
from foreserve.simulation.histogram import Distribution
from foreserve.simulation.survey import Live

MOST_TENANTS: Final = 12


def charts(results: Sequence[Result], service: str, live: Live | None, deadline_s: float | None = None) -> list[Chart]:
    """Of one service, the runs in each in their colours. `live`: what the recording tells of it.

    `deadline_s` is drawn where all requests have the same.
    """
    runs = [(result.name, result.services[service]) for result in results]
    clock = Clock(results[0].epoch, max(result.ended_s for result in results))
    return [
        *_load(runs, clock),
        *_queues(runs, clock),
        *_latencies(runs, clock, live, deadline_s),
        *_replicas(runs, clock),
        _curve(runs, "ttft", "TTFT", "Time to first token", live),
        _curve(runs, "e2e", "latency", "End-to-end latency", live, deadline_s),
        *_ends(runs, clock, live),
        *_tenants(runs),
    ]


def _load(runs: Runs, clock: Clock) -> list[Chart]:
    """Of the first run: the others have the same trace."""
    series = runs[0][1].series
    tokens = [
        line(clock, series.width_s, series.input_tokens, "prompts", "#6366f1"),
        line(clock, series.width_s, series.output_tokens, "answers", "#14b8a6"),
    ]
    arrivals = [line(clock, series.width_s, series.arrivals, "arrivals", "#374151", fill=True)]
    window = f"in windows of {seconds(series.width_s)}"
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
            traces=by_run(runs, clock, lambda s: s.waiting),
            unit="requests",
            timed=True,
        ),
        Chart(
            title="Running",
            says="Requests on replicas, mean of each window",
            traces=by_run(runs, clock, lambda s: s.running),
            unit="requests",
            timed=True,
        ),
    ]


def _latencies(runs: Runs, clock: Clock, live: Live | None, deadline_s: float | None) -> list[Chart]:
    return [
        _latency(runs, clock, live, "ttft", "TTFT", "Time to first token"),
        _latency(runs, clock, live, "e2e", "Latency", "End-to-end latency", deadline_s),
    ]


def _latency(
    runs: Runs, clock: Clock, live: Live | None, key: str, short: str, title: str, mark: float | None = None
) -> Chart:
    def quantile(name: str) -> Callable[[Series], Sequence[float | None]]:
        return lambda series: cast("Sequence[float | None]", getattr(series, f"{key}_{name}"))

    traces = [
        *by_run(runs, clock, quantile("p99"), suffix=" p99"),
        *by_run(runs, clock, quantile("p50"), suffix=" p50", dash="dot"),
    ]
    if live is not None:
        for name, dash in (("p99", "solid"), ("p50", "dot")):
            values: list[float | None] = getattr(live.course, f"{key}_{name}")
            if any(value is not None for value in values):
                traces.append(line(clock, live.course.width_s, values, f"live {name}", LIVE, dash=dash))
    silent = [name for name, each in runs if not any(value is not None for value in quantile("p50")(each.series))]
    return Chart(
        title=f"{title} over time",
        says=f"{short} by the time of arrival: p99 drawn through, p50 dotted"
        + (", live in black" if live else "")
        + _marked(mark),
        traces=traces,
        unit="latency",
        seconds=True,
        mark=mark,
        timed=True,
        log="y",
        note=f"No line of {', '.join(silent)}: nothing was done." if silent else "",
    )


def _replicas(runs: Runs, clock: Clock) -> list[Chart]:
    series = runs[0][1].series
    need = line(clock, series.width_s, series.need, "need", QUIET, fill=True)
    kv = by_run(runs, clock, lambda s: s.kv_used)
    silent = [name for name, each in runs if each.kv_used is None]
    wanted = by_run(runs, clock, lambda s: s.wanted, suffix=" wanted", dash="dot", shape="hv")
    foreseen = by_run(runs, clock, lambda s: s.foreseen, suffix=" foreseen", dash="dash")
    scaled = "; dotted: wanted by its scaling" if wanted else ""
    scaled += ", dashed: the need that it foresaw, with its own head room" if foreseen else ""
    return [
        Chart(
            title="Replicas against need",
            says=f"Ready replicas of each run{scaled}; grey: what came, as replicas kept busy at full batches",
            traces=[need, *by_run(runs, clock, lambda s: s.ready, shape="hv"), *wanted, *foreseen],
            unit="replicas",
            timed=True,
        ),
        *_there(runs, clock),
        Chart(
            title="How full replicas were",
            says="Slots in use drawn through, KV cache dotted",
            traces=[
                *by_run(runs, clock, lambda s: s.slots_used, suffix=" slots"),
                *({**trace, "line": {**trace["line"], "dash": "dot"}, "name": f"{trace['name']} KV"} for trace in kv),
            ],
            unit="",
            percent="y",
            timed=True,
            note=f"No KV line of {', '.join(silent)}: its engines did not tell." if silent else "",
        ),
    ]


def _there(runs: Runs, clock: Clock) -> list[Chart]:
    """Where the number of replicas changes: what is paid for."""
    if not any(each.scaling is not None for _, each in runs):
        return []
    return [
        Chart(
            title="Replicas paid for",
            says="From their launch to their end: those that start, work and finish what they run, mean of each window",
            traces=by_run(runs, clock, lambda s: s.replicas, shape="hv"),
            unit="replicas",
            timed=True,
        )
    ]


def _marked(mark: float | None) -> str:
    return "" if mark is None else f"; red: the deadline of {mark:g} s"


def _curve(runs: Runs, key: str, short: str, title: str, live: Live | None, mark: float | None = None) -> Chart:
    traces = [
        steps(getattr(each.tally, key), name, colour(at)) for at, (name, each) in enumerate(runs)
        if getattr(each.tally, key) is not None
    ]  # fmt: skip
    told: Distribution | None = getattr(live, key, None)
    if told is not None:
        traces.append(steps(told, "live", LIVE, dash="dash"))
    note = "" if told is not None else f"No live curve: the trace does not tell the {short} of its requests live."
    return Chart(
        title=f"{title}: distribution",
        says=f"Share of done requests with at most this {short}"
        + ("; dashed: live" if told is not None else "")
        + _marked(mark),
        traces=traces,
        unit="",
        across="latency",
        seconds=True,
        mark=mark,
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
            "x": [share(outcomes[kind.value], sum(outcomes.values())) for _, outcomes in rows],
            "customdata": [outcomes[kind.value] for _, outcomes in rows],
            "hovertemplate": "%{y}: %{customdata:,} " + kind.value + " (%{x:.1%})<extra></extra>",
            "marker": {"color": KINDS[kind.value]},
        }
        for kind in OutcomeKind
        if any(outcomes[kind.value] for _, outcomes in rows)
    ]
    lost = by_run(runs, clock, lambda s: [sum(each) for each in zip(*_not_done(s), strict=True)])
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
        return share(each.tenants[tenant].output_tokens, each.tally.output_tokens) if tenant in each.tenants else None

    def good(each: ServiceFigures, tenant: str) -> float | None:
        return share(each.tenants[tenant].good, each.tenants[tenant].requests) if tenant in each.tenants else None

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
