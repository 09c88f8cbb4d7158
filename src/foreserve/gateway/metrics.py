"""Prometheus metrics at `/metrics`: what observers are told of outcomes, and what the services say when asked.

The names are described in `docs/metrics.md`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from foreserve.core import Outcome, OutcomeKind
from foreserve.fleet.replica import State
from foreserve.gateway.foresight_metrics import ForesightMetrics
from foreserve.gateway.schemas import describe
from foreserve.running import Running

router = APIRouter(tags=["Operations"])

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histograms' buckets, in seconds."""


class Metrics:
    """The metrics of one server. Hears every outcome of `running` from now on. Labels are bounded by the app."""

    def __init__(self, running: Running) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "foreserve_requests",
            "Requests that ended, by service, outcome and error code",
            ["service", "outcome", "code"],
            registry=self.registry,
        )
        self._prompt_tokens = self._tokens("prompt")
        self._output_tokens = self._tokens("output")
        self._queue = self._seconds("queue", "From arrival to a replica")
        self._ttft = self._seconds("ttft", "From arrival to the first part of the answer")
        self._e2e = self._seconds("e2e", "From arrival to the end of requests that were done")
        starts = self._seconds("replica_start", "From a replica's launch until it was ready")
        for name, service in running.services.items():
            service.replicas.started.append(starts.labels(name).observe)
        self.registry.register(_Now(running))
        self.foresight = ForesightMetrics(running, self.registry)
        running.observers.append(self.observe)

    def _tokens(self, which: str) -> Counter:
        return Counter(f"foreserve_{which}_tokens", f"{which.capitalize()} tokens", ["service"], registry=self.registry)

    def _seconds(self, which: str, words: str) -> Histogram:
        return Histogram(f"foreserve_{which}_seconds", words, ["service"], registry=self.registry, buckets=SECONDS)

    def observe(self, outcome: Outcome) -> None:
        """Count one outcome. Children are counted with their root, which has the sum of what they used."""
        if outcome.parent is not None:
            return
        service = outcome.service
        self._requests.labels(service, outcome.kind.value, outcome.code).inc()
        self._prompt_tokens.labels(service).inc(max(0.0, outcome.usage.get("prompt_tokens", 0.0)))
        self._output_tokens.labels(service).inc(max(0.0, outcome.usage.get("output_tokens", 0.0)))
        if outcome.started is not None:
            self._queue.labels(service).observe(max(0.0, outcome.started - outcome.arrival))
        if outcome.first is not None:
            self._ttft.labels(service).observe(max(0.0, outcome.first - outcome.arrival))
        if outcome.kind is OutcomeKind.DONE:
            self._e2e.labels(service).observe(max(0.0, outcome.ended - outcome.arrival))


class _Now(Collector):
    """Queues and replicas at the moment of the question."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting = GaugeMetricFamily("foreserve_queue_waiting", "Requests in the queue", labels=["service"])
        running = GaugeMetricFamily("foreserve_running", "Requests on replicas", labels=["service"])
        replicas = GaugeMetricFamily("foreserve_replicas", "Replicas, by state", labels=["service", "state"])
        wanted = GaugeMetricFamily("foreserve_replicas_wanted", "Replicas there should be", labels=["service"])
        others = GaugeMetricFamily("foreserve_others", "Requests on its servers that came past us", labels=["service"])
        asked = GaugeMetricFamily("foreserve_scaling_wanted", "What the scaling policy wants", labels=["service"])
        granted = GaugeMetricFamily("foreserve_scaling_granted", "What the machine has room for", labels=["service"])
        forecast = GaugeMetricFamily(
            "foreserve_load_forecast", "What is expected to come in each second", labels=["service", "measure"]
        )
        capacity = GaugeMetricFamily(
            "foreserve_replica_capacity", "What one replica can do in each second", labels=["service", "measure"]
        )
        wait = GaugeMetricFamily(
            "foreserve_predicted_wait_seconds", "What one that came now would wait", labels=["service"]
        )
        for name, service in self._running.services.items():
            status = service.status()
            waiting.add_metric([name], status.waiting)
            running.add_metric([name], status.running)
            states = [replica.state for replica in status.replicas]
            for state in State:
                replicas.add_metric([name, state.value], states.count(state.value))
            wanted.add_metric([name], status.wanted)
            if status.scaling is not None and (decision := status.scaling.decision) is not None:
                asked.add_metric([name], decision.wanted)
                granted.add_metric([name], decision.granted)
            if status.scaling is not None:
                for measure, amount in status.scaling.forecast.items():
                    forecast.add_metric([name, measure], amount)
                for measure, amount in status.scaling.capacity.items():
                    capacity.add_metric([name, measure], amount)
                if status.scaling.predicted_wait_s is not None:
                    wait.add_metric([name], status.scaling.predicted_wait_s)
            told = [replica.load.others for replica in status.replicas if replica.load is not None]
            if known := [count for count in told if count is not None]:
                others.add_metric([name], sum(known))
        yield from (waiting, running, replicas, wanted, others, asked, granted, forecast, capacity, wait)


@router.get("/metrics", **describe("Prometheus metrics", reply="text/plain"))
async def metrics(http: HttpRequest) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(generate_latest(http.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
