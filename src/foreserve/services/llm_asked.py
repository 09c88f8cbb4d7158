"""What is known of a request to a language model when it comes, for foreseeing its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreserve.engines.generation import Generate
from foreserve.foresight.length import Asked


def asked_of_chat(messages: Sequence[Mapping[str, Any]], payload: Generate, tenant: str) -> Asked:
    """Of the next answer of a conversation: the system messages are its instruction, the last message its text."""
    instruction = "\n".join(message["content"] for message in messages if message["role"] in ("system", "developer"))
    every = sum(len(message["content"]) for message in messages)
    return _asked(instruction, messages[-1]["content"] if messages else "", every, payload, tenant)


def asked_of_texts(prompts: Sequence[str | Sequence[int]], payloads: Sequence[Generate], tenant: str) -> list[Asked]:
    """Of each text's continuation. Token ids have no text to tell from."""
    texts = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
    return [_asked("", text, len(text), payload, tenant) for text, payload in zip(texts, payloads, strict=True)]


def _asked(instruction: str, text: str, every: int, payload: Generate, tenant: str) -> Asked:
    """`every`: the characters of all that the model reads, `text` among them."""
    tokens = len(payload.prompt)
    # Of a prompt of token ids all is input.
    share = len(text) / every if every else float(not instruction)
    return Asked(
        instruction=instruction,
        text=text,
        input_tokens=round(tokens * share),
        prompt_tokens=tokens,
        most=payload.max_tokens,
        tenant=tenant,
    )
