"""The loads that the forecast benchmark foresees: ServeGen's fourteen days by ten minutes, Azure's hour by seconds.

ServeGen tells how many requests each client sent in a window and how long its prompts and answers were in six hours; a
window's tokens are the former times the mean of the latter, of all clients together. A window in which no client at all
sent anything is a hole in the recording: unknown, and never scored.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks import data
from benchmarks.common import Report
from foreserve.foresight.workload import Floats, Series
from foreserve.loadgen.arrivals import generator
from foreserve.traces.open import open_trace
from foreserve.traces.servegen_data import INPUTS, Client, Window, pdf, read_clients

SERVEGEN: Final = "traces/servegen/servegen_language.tar.xz"
AZURE: Final = {
    "azure_conv": "traces/azure_llm_2023/AzureLLMInferenceTrace_conv.csv.xz",
    "azure_code": "traces/azure_llm_2023/AzureLLMInferenceTrace_code.csv.xz",
}
AZURE_WINDOWS: Final = (20.0, 60.0)
MEASURES: Final = ("requests", "input_tokens", "output_tokens")


class Load(msgspec.Struct, frozen=True):
    """One trace: its series by measure, and from which window on forecasts of it are scored.

    `noise` is by measure the standard deviation of each window's amount about its own mean, as far as chance alone
    explains it: the arrivals of each client as bursty as they were fitted, each with a length drawn by itself.
    """

    name: str
    series: dict[str, Series]
    scored_from: int
    noise: dict[str, Floats]


def loads(report: Report, quick: bool) -> list[Load]:
    """All there are on this machine."""
    folder = data.folder()
    found = []
    if (path := folder / SERVEGEN).exists():
        found.append(servegen(path, 6 if quick else None))
    else:
        report.note("without ServeGen's data: a made load with a day, of which nothing is claimed")
        found.append(made(6 if quick else 14))
    for name, place in AZURE.items():
        if (path := folder / place).exists():
            found += [azure(name, path, window_s) for window_s in (AZURE_WINDOWS[1:] if quick else AZURE_WINDOWS)]
    return found


def servegen(path: Path, days: int | None = None) -> Load:
    """`m-small`, all clients together, or its first `days`. Scored after the first day, which has no yesterday."""
    clients = read_clients(path)
    window_s = clients[0].window_s
    count = max(round(client.windows[-1].start / window_s) for client in clients) + 1
    count = count if days is None else min(count, days * 144)
    amounts = {measure: np.zeros(count) for measure in MEASURES}
    spread = {measure: np.zeros(count) for measure in MEASURES}
    for client in clients:
        lengths = _lengths(client)
        for window in client.windows:
            place = round(window.start / window_s)
            if place >= count or not window.rate:
                continue
            requests = window.rate * window_s
            burst = _dispersion(window)
            (mean_in, var_in), (mean_out, var_out) = lengths[max(0, bisect_right(client.starts, window.start) - 1)]
            for measure, mean, variance in (
                ("requests", 1.0, 0.0), ("input_tokens", mean_in, var_in), ("output_tokens", mean_out, var_out),
            ):  # fmt: skip
                amounts[measure][place] += requests * mean
                spread[measure][place] += requests * (burst * mean**2 + variance)
    hole = amounts["requests"] == 0.0
    return Load(
        "servegen",
        {measure: Series(0, window_s, np.where(hole, np.nan, each)) for measure, each in amounts.items()},
        round(86_400.0 / window_s),
        {measure: np.sqrt(each) for measure, each in spread.items()},
    )


def _lengths(client: Client) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Mean and variance of prompts and of answers in each of its datasets; an empty one is as that before, or next."""
    found: list[tuple[tuple[float, float], tuple[float, float]] | None] = []
    for fields in client.datasets:
        parts = [pdf(fields[name], client.where) for name in INPUTS if name in fields]
        prompts = [part for part in parts if part is not None]
        answers = pdf(fields.get("output_tokens", "{}"), client.where)
        inside = sum(part.mean for part in prompts), sum(part.variance for part in prompts)
        found.append((inside, (answers.mean, answers.variance)) if prompts and answers is not None else None)
    known = [each for each in found if each is not None]
    last, filled = known[0], []
    for each in found:
        last = last if each is None else each
        filled.append(last)
    return filled


def _dispersion(window: Window) -> float:
    """By how much the number of requests varies, as a multiple of its mean: the square of their gaps' variation."""
    if window.family == "Gamma":
        return 1.0 / window.shape
    once, twice = math.gamma(1.0 + 1.0 / window.shape), math.gamma(1.0 + 2.0 / window.shape)
    return twice / once**2 - 1.0


def azure(name: str, path: Path, window_s: float) -> Load:
    """Its hour; scored from the second quarter on. A window that is there in part only is left out."""
    rows = [(row.arrival, 1.0, float(row.input_tokens), float(row.output_tokens)) for row in open_trace(path)]
    table = np.array(rows)
    count = int(table[-1, 0] // window_s)
    place = (table[:, 0] // window_s).astype(int)
    within = place < count
    series, noise = {}, {}
    for column, measure in enumerate(MEASURES, 1):
        amounts = table[within, column]
        series[measure] = Series(0, window_s, np.bincount(place[within], amounts, count).astype(np.float64))
        # As if each had come by itself: the sum of squares.
        noise[measure] = np.sqrt(np.bincount(place[within], amounts**2, count))
    return Load(f"{name}_{window_s:g}s", series, count // 4, noise)


def made(days: int, seed: int = 0) -> Load:
    """A load with a day, for machines without the data."""
    rng = generator(seed)
    at = np.arange(days * 144) / 144.0
    rate = 3000.0 * (1.0 + 0.6 * np.sin(2.0 * np.pi * at)) * np.exp(np.cumsum(0.01 * rng.standard_normal(len(at))))
    requests = rng.poisson(rate).astype(np.float64)
    series = {
        "requests": requests,
        "input_tokens": requests * 120.0 * np.exp(0.05 * rng.standard_normal(len(at))),
        "output_tokens": requests * 15.0 * np.exp(0.05 * rng.standard_normal(len(at))),
    }
    return Load(
        "made",
        {measure: Series(0, 600.0, amounts) for measure, amounts in series.items()},
        144,
        {measure: amounts / np.sqrt(np.maximum(requests, 1.0)) for measure, amounts in series.items()},
    )
