"""How well the load is foreseen, two windows ahead: `auto`, and each forecaster by itself, on a rolling origin.

Every forecast is made of what had come by then, by models trained on that alone, and `auto` chooses by those forecasts
that have already been proved right or wrong: it is the code that runs in a server, shown one window after another.
Only the time that a training takes is left out. MAPE is the mean of |foreseen - came| / came over the windows in which
something came; as in PreServe that of a trace is the mean of its input and output tokens, each a series of its own.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping

import msgspec
import numpy as np

from benchmarks.common import Report, arguments, console, picture
from benchmarks.forecast_loads import MEASURES, Load, loads
from foreserve.errors import ConfigError
from foreserve.foresight.workload import Floats, Forecaster, Series, filled
from foreserve.foresight.workload_auto import Outlook
from foreserve.foresight.workload_boosting import Boosting
from foreserve.foresight.workload_naive import LastValue, SeasonalNaive
from foreserve.foresight.workload_recurrent import Recurrent
from foreserve.foresight.workload_smoothing import Smoothing

STEPS = 2
LEVEL = 0.8
TOKENS = ("input_tokens", "output_tokens")
AUTO = "auto"
FORECASTERS: dict[str, type[Forecaster]] = {
    "last_value": LastValue,
    "seasonal_naive": SeasonalNaive,
    "smoothing": Smoothing,
    "gradient_boosting": Boosting,
    "recurrent": Recurrent,
}


class Played(msgspec.Struct, frozen=True):
    """Forecasts by forecaster and window, `nan` where there was none; bounds and who was asked are those of `auto`."""

    made: dict[str, Floats]
    low: Floats
    high: Floats
    asked: list[str]
    why: str
    seconds: float


def play(series: Series, offered: Mapping[str, Forecaster]) -> Played:
    """Window after window, as a server does."""
    began = time.process_time()
    count = len(series)
    outlook = Outlook(offered, STEPS, LEVEL)
    made = {name: np.full(count, np.nan) for name in (*offered, AUTO)}
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    asked, why = [""] * count, ""
    for end in range(1, count + 1):
        known = series.before(end)
        told = outlook.update(known)
        place = end - 1 + STEPS
        if told is not None and place < count:
            made[AUTO][place], low[place], high[place] = told.expected, told.low, told.high
            asked[place], why = told.model, told.why
            for name, rolling in outlook.rolling.items():
                made[name][place] = rolling.made.get(series.first + place, np.nan)
        for rolling in outlook.due(known):
            rolling.take(rolling.learn(known), known)
    return Played(made, low, high, asked, why, time.process_time() - began)


def mape(came: Floats, made: Floats, begin: int) -> float:
    """In %, from window `begin` on, where something came and something was foreseen."""
    came, made = came[begin:], made[begin:]
    there = np.isfinite(came) & np.isfinite(made) & (came > 0.0)
    return float(100.0 * np.mean(np.abs(made[there] - came[there]) / came[there])) if there.any() else float("nan")


def by_chance(load: Load, measure: str) -> float:
    """MAPE, in %, of one who knew each window's mean: what chance alone leaves, were it the normal distribution's."""
    came = load.series[measure].values[load.scored_from :]
    noise = load.noise[measure][load.scored_from :]
    there = np.isfinite(came) & (came > 0.0)
    return float(100.0 * np.sqrt(2.0 / np.pi) * np.mean(noise[there] / came[there]))


def judge(load: Load, offered: list[str], report: Report) -> dict[str, Played]:
    """One trace: a figure for each measure and forecaster, and what stands in the way of less."""
    found = {}
    for measure in MEASURES:
        series, begin, key = load.series[measure], load.scored_from, f"{load.name}_{measure}"
        console.print(f"{key}: {len(series)} windows of {series.window_s:g} s")
        one = found[measure] = play(series, {name: FORECASTERS[name]() for name in offered})
        for name, made in one.made.items():
            error = mape(series.values, made, begin)
            if np.isfinite(error):
                report.add(f"mape_{key}_{name}", error)
        came, last = series.values, filled(series.values)
        there = np.isfinite(came) & np.isfinite(one.high) & (np.arange(len(came)) >= begin)
        report.add(f"within_high_{key}", float((came <= one.high)[there].mean()), f"{LEVEL:g}")
        report.add(f"within_low_{key}", float((came >= one.low)[there].mean()), f"{LEVEL:g}")
        report.add(f"mape_{key}_last_value_one_window_ahead", mape(came[1:], last[:-1], begin - 1))
        report.add(f"mape_{key}_by_chance_alone", by_chance(load, measure))
        off = np.sort((np.abs(one.made[AUTO] - came) / came)[there & (came > 0.0)])[::-1]
        if len(off):
            report.add(f"median_ape_{key}", 100.0 * float(np.median(off)))
            most = float(off[: max(1, len(off) // 20)].sum() / off.sum())
            report.add(f"error_in_worst_5_percent_{key}", most)
        turns = Counter(name for name in one.asked[begin:] if name)
        report.note(f"{key}: asked were " + ", ".join(f"{name} {n}" for name, n in turns.most_common()))
        report.note(f"{key}: {one.why} ({one.seconds:.0f} s of processor time)")
    for name in (*offered, AUTO):
        both = [report.figures.get(f"mape_{load.name}_{measure}_{name}", np.nan) for measure in TOKENS]
        if np.isfinite(both).all():
            report.add(f"mape_{load.name}_{name}", float(np.mean(both)))
    return found


def headlines(name: str, report: Report) -> None:
    """Of ServeGen's fourteen days."""
    figures = report.figures
    ours = figures[f"mape_{name}_{AUTO}"]
    report.add("mape_servegen", ours, "below 6.2 where the trace allows")
    report.add("mape_servegen_requests", figures[f"mape_{name}_requests_{AUTO}"], "below 6.2 where the trace allows")
    report.add("mape_vs_seasonal_naive", ours / figures[f"mape_{name}_seasonal_naive"], "below 1")
    report.add("mape_vs_last_value", ours / figures[f"mape_{name}_last_value"], "below 1")


def draw(load: Load, played: Mapping[str, Played], report: Report) -> None:
    """A part of the trace with its forecasts, and the figures side by side."""
    with picture("forecast", "The load foreseen two windows ahead", 2) as (left, right):
        series, one = load.series["requests"], played["requests"]
        last = slice(max(0, len(series) - 3 * series.day), len(series))
        days = np.arange(len(series))[last] / series.day
        left.fill_between(days, one.low[last], one.high[last], alpha=0.3, label=f"{LEVEL:.0%} each way")
        left.plot(days, series.values[last], color="black", linewidth=1.0, label="came")
        left.plot(days, one.made[AUTO][last], linewidth=1.0, label=AUTO)
        left.set_xlabel("days")
        left.set_ylabel(f"requests in {series.window_s / 60:g} minutes")
        left.set_ylim(bottom=0.0)
        left.legend()
        names = [name for name in one.made if f"mape_{load.name}_{name}" in report.figures]
        width = 0.8 / len(MEASURES)
        for offset, measure in enumerate(MEASURES):
            heights = [report.figures[f"mape_{load.name}_{measure}_{name}"] for name in names]
            right.bar(np.arange(len(names)) + offset * width, heights, width, label=measure.replace("_", " "))
        right.axhline(6.2, color="grey", linestyle=":", label="the paper, elsewhere")
        right.set_xticks(np.arange(len(names)) + width, [name.replace("_", "\n") for name in names])
        right.set_ylabel("MAPE, %")
        right.legend()


def main() -> None:
    """All traces that there are."""
    given = arguments(__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    offered = list(FORECASTERS)
    settings = {"steps": STEPS, "level": LEVEL, "quick": given.quick}
    report = Report("forecast", settings)
    for name in list(offered):
        try:
            FORECASTERS[name]()
        except ConfigError as error:
            offered.remove(name)
            report.note(str(error))
    if given.quick and "recurrent" in offered:
        offered.remove("recurrent")
        report.note("quick: six days, and without the recurrent model, whose training takes longest")
    found = loads(report, given.quick)
    for index, load in enumerate(found):
        played = judge(load, offered, report)
        if index == 0:
            headlines(load.name, report)
            draw(load, played, report)
    report.finish(given.json)


if __name__ == "__main__":
    main()
