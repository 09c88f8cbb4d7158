"""What is known of a request that passes to another server: read from its body, tokens guessed by characters.

The server's own `usage` tells the truth when the answer has ended; a guess that is always off by the same factor
misleads no predictor.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from foreserve.foresight.length import Asked

CHARS_PER_TOKEN: Final = 4
"""Rough, for English text."""

MOST_BODY: Final = 2**20
"""Bytes of a conversation that are read; a longer one, images mostly, is foreseen by nothing."""

UNBOUNDED: Final = 8192
"""The longest answer where neither the request nor the server's context bounds it."""

CHAT: Final = "/v1/chat/completions"
TEXT: Final = "/v1/completions"


class _Message(msgspec.Struct):
    role: str = ""
    content: Any = None


_messages = msgspec.json.Decoder(list[_Message])
_prompt = msgspec.json.Decoder(str)


def asked_upstream(
    path: str, messages: Raw | None, prompt: Raw | None, max_tokens: int | None, context: int | None, tenant: str
) -> Asked | None:
    """Of a chat or text completion, from those fields of its body as JSON; `None` for what cannot be foreseen.

    `max_tokens` and `context` (tokens) bound the answer, where they are known. Never raises for what a client sends.
    """
    path = path.partition("?")[0].rstrip("/")
    body = messages if path == CHAT else prompt if path == TEXT else None
    if body is None or memoryview(body).nbytes > MOST_BODY:
        return None
    try:
        if path == TEXT:
            instruction, text = "", _prompt.decode(body)
            chars = len(text)
        else:
            said = [(message.role, _words(message.content)) for message in _messages.decode(body)]
            instruction = "\n".join(words for role, words in said if role in ("system", "developer"))
            text = said[-1][1] if said else ""
            chars = sum(len(words) for _, words in said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    prompt_tokens = max(1, chars // CHARS_PER_TOKEN)
    room = UNBOUNDED if context is None else max(1, context - prompt_tokens)
    return Asked(
        instruction=instruction,
        text=text,
        input_tokens=len(text) // CHARS_PER_TOKEN,
        prompt_tokens=prompt_tokens,
        most=room if max_tokens is None else min(max_tokens, room if context is not None else max_tokens),
        tenant=tenant,
    )


def _words(content: Any) -> str:
    """The text of a message, which may come in parts beside images and other things."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(part for part in parts if isinstance(part, str))
