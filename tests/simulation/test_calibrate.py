"""What was put into a simulated engine has to come out of its measurement."""

from __future__ import annotations

from typing import Any

import pytest

from foreserve.core import EngineSpec
from foreserve.engines.profile import EngineProfile
from foreserve.errors import EngineStartError
from foreserve.fleet.inline import InlineLauncher
from foreserve.simulation.calibrate import calibrate
from foreserve.simulation.calibrate_plan import Effort
from foreserve.simulation.clock import run
from foreserve.simulation.profiles import check

SIMULATED = "foreserve.engines.simulated:SimulatedEngine"


def measured(effort: Effort | None = None, **options: Any) -> tuple[EngineProfile, list[tuple[float, str]]]:
    told: list[tuple[float, str]] = []

    async def main() -> EngineProfile:
        launcher = InlineLauncher()
        spec = EngineSpec(factory=SIMULATED, options={"emit_every": 1, **options})
        effort_ = effort or Effort(seconds=20.0, fine=False)
        try:
            return await calibrate(
                launcher, spec, 256, effort_, name="a name", tell=lambda done, what: told.append((done, what))
            )
        finally:
            await launcher.close()

    return run(main(), epoch=1_700_000_000.0), told


def test_a_straight_line_engine_comes_back_as_its_lines():
    profile, told = measured(
        slots=8, kv_tokens=40_000, prefill_s_per_token=0.0005, decode_s=0.02, decode_s_per_seq=0.001, start_s=1.5
    )
    check(profile)
    assert (profile.name, profile.measured) == ("a name", "2023-11-14")
    assert (profile.slots, profile.kv_tokens, profile.context_tokens) == (8, 40_000, 8192)
    assert profile.start_s == pytest.approx(1.5)
    assert profile.batching == "continuous"
    assert profile.max_batched_tokens is None
    for tokens, row in zip(profile.prefill.tokens, profile.prefill.seconds, strict=True):
        assert row[0] == pytest.approx(0.0005 * tokens, abs=0.0005)
    for sequences, row in zip(profile.decode.sequences, profile.decode.seconds, strict=True):
        assert row == pytest.approx([0.02 + 0.001 * (sequences - 1)] * len(row), rel=0.02)
    shares = [done for done, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {"start 1 of 2", "prefill", "decode"} <= {what for _, what in told}


def test_a_static_engine_is_measured_in_batches():
    profile, _ = measured(
        slots=4, kv_tokens=8192, batching="static", prefill_s_per_token=0.001, decode_s=0.05, decode_s_per_seq=0.01
    )
    check(profile)
    assert profile.batching == "static"
    for tokens, row in zip(profile.prefill.tokens, profile.prefill.seconds, strict=True):
        assert row[0] == pytest.approx(0.001 * tokens, rel=0.05)
    for rows, row in zip(profile.decode.sequences, profile.decode.seconds, strict=True):
        assert row == pytest.approx([0.05 + 0.01 * (rows - 1)] * len(row), rel=0.02)


def test_one_slot_and_a_small_cache_can_be_measured():
    profile, _ = measured(slots=1, kv_tokens=256, context_tokens=256)
    check(profile)
    assert profile.decode.sequences == [1]
    assert profile.prefill.tokens[-1] <= 128


def test_a_measurement_keeps_to_its_time():
    short, _ = measured(Effort(seconds=10.0, fine=True))
    assert short.slots == 16


def test_an_engine_that_does_not_start_is_told():
    with pytest.raises(EngineStartError, match="slots"):
        measured(slots=0)
