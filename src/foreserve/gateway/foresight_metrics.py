"""Prometheus metrics of foresight: how far predictions were off, what they cost, and how training goes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from foreserve.core import Outcome, OutcomeKind
from foreserve.running import Running

TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Upper bounds of buckets of tokens."""

LATENCY = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
TRAINING = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of buckets of seconds."""

QUANTILES = ("p50", "p80", "p95")


class ForesightMetrics:
    """Of all services of `running` that foresee the length of their answers."""

    def __init__(self, running: Running, registry: CollectorRegistry) -> None:
        self._error = Histogram(
            "foreserve_length_error_tokens",
            "How far the predicted mean length was from the answer's, of answers that ended by themselves",
            ["service", "source"],
            registry=registry,
            buckets=TOKENS,
        )
        self._lengths = {
            which: Counter(
                f"foreserve_length_{which}_tokens",
                f"{which.capitalize()} output tokens of answers that ended by themselves",
                ["service"],
                registry=registry,
            )
            for which in ("predicted", "actual")
        }
        self._coverage = Counter(
            "foreserve_length_coverage",
            "Answers that were done, by whether they were as long as the quantile at most",
            ["service", "quantile", "within"],
            registry=registry,
        )
        latency = Histogram(
            "foreserve_prediction_seconds", "Of one prediction, embeddings left out", ["service"],
            registry=registry, buckets=LATENCY,
        )  # fmt: skip
        trainings = Counter("foreserve_trainings", "Trainings, by result", ["service", "result"], registry=registry)
        training = Histogram(
            "foreserve_training_seconds", "Of one training, in its own process", ["service"],
            registry=registry, buckets=TRAINING,
        )  # fmt: skip

        def trained(service: str, result: str, seconds: float) -> None:
            trainings.labels(service, result).inc()
            training.labels(service).observe(seconds)

        for name, foreseer in running.foreseers.items():
            foreseer.predicted.append(latency.labels(name).observe)
            foreseer.trained.append(partial(trained, name))
        if running.foreseers:
            registry.register(_Now(running))
        running.observers.append(self.observe)

    def observe(self, outcome: Outcome) -> None:
        """Compare one outcome with its forecast; each choice of a request with several by itself."""
        tokens = outcome.usage.get("output_tokens", 0.0)
        if outcome.forecast is None or outcome.kind is not OutcomeKind.DONE or tokens < 1:
            return
        service, length = outcome.service, outcome.forecast.output
        cut = outcome.finish != "stop" or tokens >= outcome.forecast.most_tokens
        for quantile in QUANTILES:
            foreseen = getattr(length, quantile)
            # A quantile at the limit could not be exceeded; an answer cut below one may have come to exceed it.
            if foreseen < outcome.forecast.most_tokens and not (cut and tokens <= foreseen):
                self._coverage.labels(service, quantile, "yes" if tokens <= foreseen else "no").inc()
        if cut:
            return
        self._error.labels(service, length.source).observe(abs(length.mean - tokens))
        self._lengths["predicted"].labels(service).inc(length.mean)
        self._lengths["actual"].labels(service).inc(tokens)


class _Now(Collector):
    """The tier in use and what it has learned from, at the moment of the question."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def collect(self) -> Iterator[GaugeMetricFamily]:
        tier = GaugeMetricFamily("foreserve_foresight_tier", "1 for the tier in use", labels=["service", "tier"])
        samples = GaugeMetricFamily(
            "foreserve_model_samples", "Answers that the model in place was trained on", labels=["service", "tier"]
        )
        missed = GaugeMetricFamily(
            "foreserve_without_meaning", "Requests foreseen without the embedding they should have had, so far",
            labels=["service"],
        )  # fmt: skip
        for name, foreseer in self._running.foreseers.items():
            status = foreseer.status()
            tier.add_metric([name, status.tier], 1)
            for which, count in status.models.items():
                samples.add_metric([name, which], count)
            missed.add_metric([name], status.without_meaning)
        yield from (tier, samples, missed)
