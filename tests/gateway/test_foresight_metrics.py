from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from foreserve.core import FinishReason, Forecast, Length, Outcome, OutcomeKind
from foreserve.gateway.foresight_metrics import ForesightMetrics
from tests.gateway.test_metrics import samples
from tests.gateway.test_openai import chat


def test_predictions_are_compared_with_what_came(client: httpx.Client):
    for _ in range(5):
        chat(client, "say abcdefghij")  # until this many have ended nothing is foreseen
    before = samples(client)
    for _ in range(7):
        chat(client, "say abcdefghij")
    chat(client, "say abcdefghij", max_tokens=3)  # cut: tells nothing of the error
    after = samples(client)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted({"service": "chat", **labels}.items())))
        return after[key] - before.get(key, 0.0)

    assert grown("foreserve_length_actual_tokens_total") == 70
    within = grown("foreserve_length_coverage_total", quantile="p95", within="yes")
    assert within + after.get(
        ("foreserve_length_coverage_total", (("quantile", "p95"), ("service", "chat"), ("within", "no"))), 0.0
    ) >= 7  # fmt: skip
    counted = {
        dict(labels)["source"]: value
        for (name, labels), value in after.items()
        if name == "foreserve_length_error_tokens_count"
    }
    assert sum(counted.values()) >= 7
    assert grown("foreserve_prediction_seconds_count") == 8
    assert after["foreserve_foresight_tier", (("service", "chat"), ("tier", "histogram"))] == 1  # no model yet


@pytest.mark.parametrize(
    ("tokens", "finish", "within"),
    [
        (8, "stop", {"p50": True, "p80": True}),
        (20, "stop", {"p50": False, "p80": True}),
        (21, "stop", {"p50": False, "p80": False}),
        (30, "length", {"p50": False, "p80": False}),  # at its limit: longer than either for sure
        (30, "stop", {"p50": False, "p80": False}),  # an upstream server may not say so
        (15, "length", {"p50": False}),  # cut before p80: whether it would have kept that is not known
    ],
)
def test_coverage_counts_what_is_known_of_cut_answers(
    tokens: int, finish: FinishReason, within: dict[str, bool]
) -> None:
    running: Any = SimpleNamespace(foreseers={}, observers=[])
    registry = CollectorRegistry()
    metrics = ForesightMetrics(running, registry)
    length = Length(mean=12.0, p50=10.2, p80=20.4, p95=30.0, source="fast")  # p95 is the limit: it tells nothing
    outcome = Outcome(
        id="a", service="chat", kind=OutcomeKind.DONE, arrival=0.0, ended=1.0, finish=finish,
        usage={"output_tokens": float(tokens)},
        forecast=Forecast(input_tokens=3, output=length, most_tokens=30, seconds=1.0),
    )  # fmt: skip
    metrics.observe(outcome)
    counted = {
        sample.labels["quantile"]: sample.labels["within"] == "yes"
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "foreserve_length_coverage_total" and sample.value
    }
    assert counted == within
