from __future__ import annotations

import httpx

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
    assert after["foreserve_foresight_tier", (("service", "chat"), ("tier", "fast"))] == 1
