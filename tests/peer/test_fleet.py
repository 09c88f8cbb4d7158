"""Two real llama.cpp servers behind one gateway: the benchmark's smoke form loses nothing."""

from __future__ import annotations

import os

import pytest
from benchmarks.remote_fleet import run

pytestmark = [pytest.mark.peer, pytest.mark.timeout(400)]


def test_rolling_restarts_and_hangs_lose_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    python = os.environ.get("FORESERVE_PEER_LLAMACPP")
    if not python:
        pytest.skip("FORESERVE_PEER_LLAMACPP names no interpreter; tests/peer/setup.sh makes one")
    monkeypatch.setattr("benchmarks.remote_fleet.PEER_PYTHON", python)
    report = run(quick=True)
    figures = report["figures"]
    assert (figures["lost_requests"], figures["unaccounted_requests"]) == (0, 0), report["notes"]
    assert figures["requests"] > 50
    assert figures["retries"] >= 1
