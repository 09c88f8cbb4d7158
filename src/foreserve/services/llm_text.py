"""Words to tokens and back, as a language-model service needs it: one small protocol and its two forms.

`PreparedText` is a prepared model's own tokenizer and chat template. `ByteText` needs no model: a byte is a token. It
goes with the simulated engine, whose answers are about cost and not about words.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Detokenizer(Protocol):
    """Text of one answer as its tokens come. Holds back bytes that are not a whole character yet."""

    def feed(self, ids: Sequence[int]) -> str: ...
    def flush(self) -> str:
        """What is held back, at the end; incomplete characters come out as U+FFFD."""
        ...


class Text(Protocol):
    """A model's tokenizer and chat template. `context_tokens` is what the model was made for."""

    @property
    def context_tokens(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str) -> list[int]:
        """The prompt that a plain text is, with the token that begins a text where the model wants one."""
        ...

    def conversation(self, messages: Sequence[Mapping[str, Any]], wall: float) -> list[int]:
        """The prompt of a conversation, up to where the assistant speaks. Raises BadRequest, or what a template may.

        Some templates write the date: `wall` is seconds since the epoch. It may be called off the event loop.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str: ...
    def detokenizer(self) -> Detokenizer: ...


class ByteText:
    """A byte is a token and 256 ends a text. Ids beyond, as a cost model may give, are some printable character."""

    def __init__(self, context_tokens: int = 8192) -> None:
        self.context_tokens = context_tokens
        self.vocabulary = 257
        self.eos_ids = (256,)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return _as_bytes(ids).decode(errors="replace")

    def detokenizer(self) -> _ByteDetokenizer:
        return _ByteDetokenizer()

    def conversation(self, messages: Sequence[Mapping[str, Any]], wall: float) -> list[int]:
        return self.encode("".join(f"{said['role']}: {said['content']}\n" for said in messages) + "assistant: ")


class _ByteDetokenizer:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(_as_bytes(ids))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


def _as_bytes(ids: Sequence[int]) -> bytes:
    return bytes(i if i < 256 else 32 + i % 95 for i in ids if i != 256)
