"""What a request to a Ray Serve deployment asks for, as far as its arguments tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from foreserve.core import Prefix
from foreserve.foresight.length import Asked
from foreserve.services.prefixes import BYTES_PER_TOKEN, of_bytes

TEXTS: Final = ("prompt", "input", "text", "query")
"""Fields that may hold the prompt, beside `messages`."""

LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens")
MOST_CHARACTERS: Final = 65_536
"""Of a prompt that are looked at; all of them are counted."""


def asked(args: Sequence[Any], kwargs: Mapping[str, Any], most: int) -> tuple[Asked, Prefix | None]:
    """Read from the first argument that has a prompt: a text, a mapping or an object with OpenAI's fields.

    `most` is the limit of a request that names none. Where no prompt is found it counts as empty. Raises nothing of
    its own; arguments with properties that raise are the caller's to catch.
    """
    holders = [*args, kwargs]
    instruction, text = next((found for holder in holders if (found := _texts(holder)) is not None), ("", ""))
    limits = (_field(holder, name) for holder in holders for name in LIMITS)
    limit = next((int(value) for value in limits if isinstance(value, int) and value > 0), most)
    inputs = len(text.encode(errors="replace")) // BYTES_PER_TOKEN if len(text) < MOST_CHARACTERS else len(text) // 4
    prompt = inputs + len(instruction) // BYTES_PER_TOKEN
    head = (instruction + "\n" + text)[:MOST_CHARACTERS].encode(errors="replace")
    known = Asked(
        instruction=instruction[:MOST_CHARACTERS],
        text=text[:MOST_CHARACTERS],
        input_tokens=inputs,
        prompt_tokens=prompt,
        most=limit,
    )
    return known, of_bytes(head)


def _texts(holder: Any) -> tuple[str, str] | None:
    """Instruction and text; `None` where it holds no prompt."""
    if isinstance(holder, str):
        return "", holder
    messages = _field(holder, "messages")
    if isinstance(messages, Sequence) and not isinstance(messages, str | bytes) and messages:
        told = [(_field(message, "role"), _content(_field(message, "content"))) for message in messages]
        system = "\n".join(content for role, content in told if role in ("system", "developer"))
        return system, "\n".join(content for role, content in told if role not in ("system", "developer"))
    for name in TEXTS:
        if isinstance(value := _field(holder, name), str):
            return "", value
    return None


def _content(value: Any) -> str:
    """Of a message: a text, or the texts among its parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "\n".join(text for part in value if isinstance(text := _field(part, "text"), str))
    return ""


def _field(holder: Any, name: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(name)
    if holder is None or isinstance(holder, str | bytes | int | float | Sequence):
        return None
    return getattr(holder, name, None)
