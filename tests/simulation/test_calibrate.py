"""What was put into a simulated engine has to come out of its measurement."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from foreserve.core import EngineSpec
from foreserve.engines.profile import DecodeTable, EngineProfile, PrefillTable, checked, linear
from foreserve.engines.simulated_cost import DecodeCost, PrefillCost
from foreserve.errors import EngineStartError
from foreserve.fleet.inline import InlineLauncher
from foreserve.simulation.calibrate import calibrate
from foreserve.simulation.calibrate_continuous import mixed_steps
from foreserve.simulation.calibrate_plan import Effort
from foreserve.simulation.clock import run

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
    checked(profile)
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


TOKENS, BEFORE = [1, 16, 64, 256, 512], [0, 512, 2048]
SEQUENCES, CONTEXT = [1, 2, 4, 8], [16, 512, 2048]
KNOWN = EngineProfile(
    slots=8,
    kv_tokens=46_592,
    context_tokens=8192,
    prefill=PrefillTable(
        tokens=TOKENS,
        before=BEFORE,
        seconds=[[0.01 + 0.00055 * (t - 1) + 2.5e-7 * t * b for b in BEFORE] for t in TOKENS],
    ),
    decode=DecodeTable(
        sequences=SEQUENCES,
        context=CONTEXT,
        seconds=[[0.01 + 0.0007 * (n - 1) + 2.5e-6 * n * (c - 16) for c in CONTEXT] for n in SEQUENCES],
    ),
    max_batched_tokens=512,
    mixing=0.6,
    change_s=0.005,
    block_tokens=32,
    prefix_caching=True,
    start_s=1.5,
    overhead_s=0.001,
)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("change_s", [0.005, 0.0])
def test_a_known_profile_comes_back(caching: bool, change_s: float):
    known = msgspec.structs.replace(KNOWN, prefix_caching=caching, change_s=change_s)
    found, _ = measured(Effort(), profile=known)
    for name in ("slots", "kv_tokens", "context_tokens", "max_batched_tokens", "block_tokens", "prefix_caching"):
        assert getattr(found, name) == getattr(known, name), name
    assert found.start_s == pytest.approx(known.start_s)
    assert found.overhead_s == pytest.approx(known.overhead_s, abs=2e-4)
    assert found.change_s == pytest.approx(known.change_s, abs=2e-4)
    assert found.mixing == pytest.approx(known.mixing, abs=0.02)
    prefill, decode = PrefillCost(known.prefill), DecodeCost(known.decode)
    for tokens, row in zip(found.prefill.tokens, found.prefill.seconds, strict=True):
        for before, seconds in zip(found.prefill.before, row, strict=True):
            assert seconds == pytest.approx(prefill.at(tokens, before), rel=0.03, abs=3e-4), (tokens, before)
    for sequences, row in zip(found.decode.sequences, found.decode.seconds, strict=True):
        for context, seconds in zip(found.decode.context, row, strict=True):
            assert seconds == pytest.approx(decode.line(sequences).at(context), rel=0.02), (sequences, context)


def test_a_static_engine_is_measured_in_batches():
    profile, _ = measured(
        slots=4, kv_tokens=8192, batching="static", prefill_s_per_token=0.001, decode_s=0.05, decode_s_per_seq=0.01
    )
    checked(profile)
    assert profile.batching == "static"
    for tokens, row in zip(profile.prefill.tokens, profile.prefill.seconds, strict=True):
        assert row[0] == pytest.approx(0.001 * tokens, rel=0.05)
    for rows, row in zip(profile.decode.sequences, profile.decode.seconds, strict=True):
        assert row == pytest.approx([0.05 + 0.01 * (rows - 1)] * len(row), rel=0.02)


def test_one_slot_and_a_small_cache_can_be_measured():
    profile, _ = measured(slots=1, kv_tokens=256, context_tokens=256)
    checked(profile)
    assert profile.decode.sequences == [1]
    assert profile.prefill.tokens[-1] <= 128


@pytest.mark.parametrize("budget", [None, 512, 256, 200])
@pytest.mark.parametrize(
    ("slots", "kv_tokens"), [(256, 100_000), (128, 16_000), (64, 8192), (256, 16_000), (32, 100), (3, 70)]
)
def test_many_slots_and_little_room_can_be_measured(slots: int, kv_tokens: int, budget: int | None):
    known = linear(slots=slots, kv_tokens=kv_tokens, decode_s=0.02, decode_s_per_seq=0.0005)
    known = msgspec.structs.replace(known, max_batched_tokens=budget, change_s=0.004, mixing=0.5)
    found, _ = measured(Effort(seconds=5.0, fine=False, starts=1), profile=known)
    checked(found)
    assert (found.slots, found.decode.sequences[-1]) == (slots, slots)
    seconds = [0.02 + 0.0005 * (sequences - 1) for sequences in found.decode.sequences]
    # Those that there was no room for lie on the line of the others.
    assert [row[0] for row in found.decode.seconds] == pytest.approx(seconds, rel=0.02)
    assert found.change_s == pytest.approx(0.004, abs=2e-4)
    assumed = any("`mixing` is assumed" in note for note in found.notes)
    assert found.mixing == pytest.approx(0.5 if budget is not None and not assumed else 1.0, abs=0.02)
    if (slots, budget) == (256, 200):
        assert any("no room to measure 256 together" in note for note in found.notes)


def test_the_step_after_a_mixed_one_says_nothing_of_decode_alone():
    # Steps of 1 s; the mixed one takes 3 s, and the one after it pays 0.5 s for the change.
    # The last of the others begins at 4, so that the step after that pays too.
    times = [0.0, 4.0, 5.5, 6.5, 9.5, 11.0, 12.0, 15.0, 16.5]
    assert mixed_steps(times, 4.0, [(16, 9.5), (32, 15.0)]) == [(16, 3.0, 1.0), (32, 3.0, 1.0)]
    assert mixed_steps([], 4.0, [(16, 9.5)]) == []


def test_a_measurement_keeps_to_its_time():
    short, _ = measured(Effort(seconds=10.0, fine=True))
    assert short.slots == 16


def test_an_engine_that_does_not_start_is_told():
    with pytest.raises(EngineStartError, match="slots"):
        measured(slots=0)
