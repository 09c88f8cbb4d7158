from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from foreserve.services.upstream_asked import CHAT, MOST_BODY, TEXT, UNBOUNDED, asked_upstream

SYSTEM = {"role": "system", "content": "Translate."}


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def test_a_conversation_is_its_instruction_and_its_last_message():
    said = [SYSTEM, {"role": "user", "content": "x" * 30}, {"role": "assistant", "content": "y"}]
    last = {"role": "user", "content": [{"type": "text", "text": "z" * 40}, {"type": "image_url", "image_url": {}}]}
    asked = asked_upstream(CHAT + "?a=b", raw([*said, last]), None, 100, None, "ann")
    assert asked is not None
    assert (asked.instruction, asked.text, asked.tenant) == ("Translate.", "z" * 40, "ann")
    assert (asked.input_tokens, asked.prompt_tokens, asked.most) == (10, 81 // 4, 100)


def test_a_text_is_its_prompt():
    asked = asked_upstream(TEXT, None, raw("x" * 400), None, 150, "default")
    assert asked is not None
    assert (asked.text, asked.input_tokens, asked.prompt_tokens, asked.most) == ("x" * 400, 100, 100, 50)
    bounded = asked_upstream(TEXT, None, raw("x" * 400), 1000, 150, "default")
    assert bounded is not None
    assert bounded.most == 50
    free = asked_upstream(TEXT, None, raw("x"), None, None, "default")
    assert free is not None
    assert free.most == UNBOUNDED


@pytest.mark.parametrize(
    ("path", "messages", "prompt"),
    [
        ("/v1/embeddings", raw([SYSTEM]), raw("x")),
        (CHAT, None, raw("x")),
        (TEXT, raw([SYSTEM]), None),
        (TEXT, None, raw([1, 2, 3])),
        (CHAT, raw("no list"), None),
        (CHAT, raw([1, 2]), None),
        (CHAT, msgspec.Raw(b"[{"), None),
        (CHAT, msgspec.Raw(b'[{"role": "\xff"}]'), None),
        (CHAT, raw([{"role": "user", "content": "x" * MOST_BODY}]), None),
    ],
)
def test_what_cannot_be_read_is_not_foreseen(path: str, messages: msgspec.Raw | None, prompt: msgspec.Raw | None):
    assert asked_upstream(path, messages, prompt, 10, None, "default") is None


def test_odd_conversations_are_read_as_far_as_they_go():
    for odd in ([], [{}], [{"role": "user", "content": None}], [{"role": "user", "content": [{"text": 3}, 4]}]):
        asked = asked_upstream(CHAT, raw(odd), None, None, None, "default")
        assert asked is not None
        assert (asked.text, asked.prompt_tokens) == ("", 1)
