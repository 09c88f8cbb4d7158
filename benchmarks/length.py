"""How well and how fast answer lengths are predicted, on held-out real prompts of four data sets.

The fast tier (no embedding) and the full one (MiniLM) are each trained on four fifths of a set's contexts and judged on
the rest, against the mean, a regression on the input's length, each application's mean, and a histogram by
input length; for the mean absolute error every one of them may use its median instead. Then the
requests of two sets arrive one after another and a predictor learns as it goes. All of it on one core.

Coverage is the share of answers within a quantile, where an answer of n tokens lies evenly between n - 0.5 and n + 0.5:
with answers of one token no whole number could be within 5 points.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.common import Report, arguments, console, median, picture
from benchmarks.length_sets import Arrivals, Floats, Item, arrivals, baselines, errors, items, samples
from benchmarks.pairs import available
from foreserve.core import Length
from foreserve.errors import ConfigError
from foreserve.foresight.length import Ended
from foreserve.foresight.length_encoder import MiniLM
from foreserve.foresight.length_features import Encoder
from foreserve.foresight.length_predictor import Predictor
from foreserve.foresight.length_training import LEAST_SAMPLES, train
from foreserve.foresight.length_verdict import Sample
from foreserve.models.catalog import locate

SETS = {"apps": 9000, "sharegpt": 6000, "p3": 12_000, "gsm8k": 8792}
QUICK = {"apps": 1500, "sharegpt": 1500, "p3": 1500}
LEARNING = ("apps", "sharegpt")
MOST_ARRIVALS = 5000
LEVELS = {"p50": 0.5, "p80": 0.8, "p95": 0.95}


def encoder(report: Report) -> MiniLM | None:
    """The full tier's, where it is installed."""
    try:
        found = MiniLM(locate("minilm", "benchmarks.length").path)
    except ConfigError as error:
        report.note(f"no full tier: {error}")
        return None
    report.note(f"full tier: MiniLM on {found.backend}")
    return found


def coverage(predicted: Sequence[Length], tokens: Floats, seed: int) -> dict[str, float]:
    """By quantile, the share of answers within it (each somewhere in its token's cell)."""
    within = tokens + np.random.default_rng(seed).random(len(tokens)) - 0.5
    return {name: float(np.mean(within <= [getattr(length, name) for length in predicted])) for name in LEVELS}


def judge(name: str, found: Sequence[Item], seeds: Sequence[int], tiers: Sequence[str], report: Report) -> None:
    """One set: errors of both tiers and of the baselines, coverage; medians over the splits."""
    console.print(f"{name}: {len(found)} pairs")
    rows: dict[str, list[float]] = {}

    def add(key: str, value: float) -> None:
        rows.setdefault(key, []).append(value)

    for seed in seeds:
        given = arrivals(found, seed)
        others = {kind: errors(given, *points) for kind, points in baselines(given).items()}
        for kind, (mae, rmse) in others.items():
            add(f"{name}_{kind.replace(' ', '_')}_mae", mae)
            add(f"{name}_{kind.replace(' ', '_')}_rmse", rmse)
        least = [min(other[index] for other in others.values()) for index in (0, 1)]
        for tier in tiers:
            learned, held = samples(given, full=tier == "full")
            model = train(learned, seed=seed)
            predicted = model.predict([sample.features for sample in held])
            mae, rmse = _ours(given, predicted)
            add(f"{name}_{tier}_mae", mae)
            add(f"{name}_{tier}_rmse", rmse)
            add(f"{name}_{tier}_mae_vs_best_baseline", mae / least[0])
            add(f"{name}_{tier}_rmse_vs_best_baseline", rmse / least[1])
            for level, share in coverage(predicted, given.tokens, seed).items():
                add(f"{name}_{tier}_{level}_coverage", share)
            whole = np.mean([np.ceil(p.p80) >= n for p, n in zip(predicted, given.tokens, strict=True)])
            add(f"{name}_{tier}_p80_whole_tokens_coverage", float(whole))
    for key, values in rows.items():
        report.add(key, values)


def _ours(given: Arrivals, predicted: Sequence[Length]) -> tuple[float, float]:
    truth = given.tokens
    mae = np.abs(truth - np.round([length.p50 for length in predicted])).mean()
    return float(mae), float(np.sqrt(((truth - [length.mean for length in predicted]) ** 2).mean()))


def headlines(names: Sequence[str], tiers: Sequence[str], report: Report) -> None:
    """The worst over the sets."""
    for tier in tiers:
        first = "" if tier == "fast" else "full_"
        for error in ("mae", "rmse"):
            worst = max(report.figures[f"{name}_{tier}_{error}_vs_best_baseline"] for name in names)
            report.add(f"{first}{error}_vs_best_baseline", worst, "below 1")
        off, off_in_a_split = [], []
        for name in names:
            for level, nominal in LEVELS.items():
                key = f"{name}_{tier}_{level}_coverage"
                off.append(100 * abs(report.figures[key] - nominal))
                split_by_split = report.spread.get(key, (report.figures[key],))
                off_in_a_split.append(max(100 * abs(share - nominal) for share in split_by_split))
        report.add(f"{first}coverage_error_points", max(off), "at most 5")
        report.add(f"{first}coverage_error_points_worst_split", max(off_in_a_split))


def speed(found: Sequence[Item], minilm: Encoder | None, report: Report, repeats: int) -> None:
    """Of a predictor trained on these, on prompts of 100 to 300 tokens one by one and on all prompts in batches."""
    mid = [item.asked for item in found if 100 <= item.asked.input_tokens <= 300][:200]
    given = Arrivals(list(found[:3000]), [])
    fast = Predictor(train(samples(given, full=False)[0]))
    _time("fast_predict_p50_ms", lambda n: fast.predict([mid[n % len(mid)]]), 400, repeats, report, "below 0.3")
    batch = [item.asked for item in found[:2560]]
    rates = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for start in range(0, len(batch), 256):
            fast.predict(batch[start : start + 256])
        rates.append(len(batch) / (time.perf_counter() - begin))
    report.add("fast_predictions_per_s", rates, "at least 5,000")
    if minilm is not None:
        full = Predictor(train(samples(given, full=True)[0]), encoder=minilm)
        _time("full_predict_p50_ms", lambda n: full.predict([mid[n % len(mid)]]), 100, repeats, report, "below 15")


def _time(key: str, call: Callable[[int], object], times: int, repeats: int, report: Report, goal: str) -> None:
    medians = []
    for _ in range(repeats):
        took = []
        for n in range(times):
            begin = time.perf_counter()
            call(n)
            took.append(time.perf_counter() - begin)
        medians.append(1000 * median(took))
    report.add(key, medians, goal)


class Curve:
    """Requests in order of arrival, each predicted before its answer is known; trained anew after every `every`."""

    def __init__(self, found: Sequence[Item], every: int) -> None:
        self.at: list[int] = []
        self.errors: dict[str, list[float]] = {"learning": [], "histograms alone": [], "mean so far": []}
        predictor, histograms = Predictor(), Predictor()
        self.refused = 0
        self.within: list[bool] = []
        kept: list[Sample] = []
        total = 0
        window: dict[str, list[float]] = {name: [] for name in self.errors}
        for item in found:
            ended = Ended(tokens=item.tokens)
            features = predictor.featurise([item.asked])[0]
            length = predictor.predict_features([features])[0]
            if len(kept) >= LEAST_SAMPLES:  # before, histograms are all there is, and no mean to speak of
                window["learning"].append(abs(item.tokens - length.p50))
                self.within.append(item.tokens <= length.p80)
                window["histograms alone"].append(abs(item.tokens - histograms.predict([item.asked])[0].p50))
                window["mean so far"].append(abs(item.tokens - total / len(kept)))
            total += item.tokens
            predictor.learn_features(features, ended, length)
            histograms.learn(item.asked, ended)
            kept.append(Sample(features, ended))
            if len(kept) % every == 0:
                self._note(len(kept), window)
                self._retrain(predictor, kept, every)

    def _note(self, at: int, window: dict[str, list[float]]) -> None:
        self.at.append(at)
        for name, told in window.items():
            self.errors[name].append(float(np.mean(told)))
            told.clear()

    def _retrain(self, predictor: Predictor, kept: Sequence[Sample], every: int) -> None:
        """On all but the newest, which judge old and new alike."""
        newest = max(every // 4, 50)
        if len(kept) - newest >= LEAST_SAMPLES:
            self.refused += not predictor.swap(train(kept[:-newest]), kept[-newest:]).better


def learning(found: dict[str, list[Item]], every: int, report: Report) -> None:
    """The picture of learning, and how far it came."""
    with picture("length", "Mean absolute error while learning, by requests so far", len(found)) as axes:
        for plot, (name, given) in zip(axes, found.items(), strict=True):
            curve = Curve(given, every)
            for label, values in curve.errors.items():
                plot.plot(curve.at, values, marker=".", label=label)
            plot.set_title(name)
            plot.set_xlabel("requests")
            plot.set_ylabel("tokens")
            plot.set_ylim(bottom=0)
            plot.legend()
            half = len(curve.at) // 2
            late = {label: float(np.mean(values[half:])) for label, values in curve.errors.items()}
            report.add(f"{name}_online_mae", late["learning"])
            report.add(f"{name}_online_mae_vs_histograms", late["learning"] / late["histograms alone"], "below 1")
            report.add(f"{name}_online_p80_coverage", float(np.mean(curve.within)))
            report.note(f"{name}: trained anew every {every} requests, {curve.refused} new models refused")


def main() -> None:
    """Run it."""
    options = arguments(__doc__)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    counts = QUICK if options.quick else SETS
    seeds = range(1 if options.quick else 3)
    report = Report("length", {"pairs": counts, "splits": len(seeds), "held_out": 0.2})
    if options.quick:
        report.note("quick form: 1,200 samples a set and one split; claims come from the full one")
    here = {name: count for name, count in counts.items() if available(name)}
    if not here:
        console.print("no data (FORESERVE_DATA): this benchmark needs real prompts with real responses")
        raise SystemExit(1)
    minilm = encoder(report)
    tiers = ("fast",) if minilm is None else ("fast", "full")
    found = {name: items(name, count, minilm) for name, count in here.items()}
    speed(max(found.values(), key=lambda given: _mid(given)), minilm, report, 3 if options.quick else 7)
    for name, given in found.items():
        judge(name, given, seeds, tiers, report)
    headlines(list(found), tiers, report)
    shown = {name: found[name][:MOST_ARRIVALS] for name in LEARNING if name in found}
    if shown:
        learning(shown, 500, report)
    report.finish(options.json)


def _mid(given: Sequence[Item]) -> int:
    return sum(100 <= item.asked.input_tokens <= 300 for item in given)


if __name__ == "__main__":
    main()
