from __future__ import annotations

from typing import Any

import msgspec
import pytest

from foreserve.settings import LLMSettings
from foreserve.simulation.adapted import adapted
from tests.simulation.traces import PROFILE

MEASURED = LLMSettings(model="m", max_running=8)


def test_the_same_settings_leave_a_profile_as_it_is():
    assert adapted("chat", PROFILE, MEASURED, msgspec.structs.replace(MEASURED, replicas=5)) == (PROFILE, [])


def test_what_the_profile_holds_is_carried_over():
    profile = msgspec.structs.replace(PROFILE, max_batched_tokens=512)
    asked = msgspec.structs.replace(
        MEASURED, max_running=4, kv_cache_gb=0.5, context_tokens=1000, max_batched_tokens=128, prefix_caching=False
    )
    told, notes = adapted("chat", profile, MEASURED, asked)
    assert (told.slots, told.kv_tokens, told.context_tokens) == (4, PROFILE.kv_tokens // 2, 1000)
    assert (told.max_batched_tokens, told.prefix_caching) == (128, False)
    assert notes == []


def test_prompts_that_are_computed_whole_stay_whole():
    told, _ = adapted("chat", PROFILE, MEASURED, msgspec.structs.replace(MEASURED, max_batched_tokens=128))
    assert told.max_batched_tokens is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_running": 64}, "64 requests at once were not measured (at most 8 were)"),
        ({"threads": 1}, "threads is changed"),
        ({"model": "foo"}, "stays that of the engine that was measured (m): its times say nothing of foo"),
    ],
)
def test_what_was_not_measured_is_told(changes: dict[str, Any], words: str):
    _, notes = adapted("chat", PROFILE, MEASURED, msgspec.structs.replace(MEASURED, **changes))
    assert len(notes) == 1
    assert words in notes[0]
    assert notes[0].startswith("warning: chat: ")
