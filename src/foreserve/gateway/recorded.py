"""From a request and its outcome to a row of a trace: lengths and hashes; text only where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final

import msgspec
import numpy as np

from foreserve.core import Outcome, Request
from foreserve.engines.forwarding import Body, Forward
from foreserve.engines.generation import Generate
from foreserve.errors import Unavailable
from foreserve.services.foreseen import Foreseen
from foreserve.services.llm import LLM
from foreserve.services.llm_decoder import TextDelta
from foreserve.services.upstream_asked import CHARS_PER_TOKEN, asked_upstream
from foreserve.traces.own import within_span
from foreserve.traces.reading import MOST_TOKENS, check
from foreserve.traces.row import TraceRow

MOST_TEXT: Final = 2**20
"""Characters (of another server's answer: bytes) that are kept of a prompt and of an answer."""


MOST_HASHES: Final = 16_384
"""Hashes of one row; what follows of its prompt is as if nobody shared it."""

LEAST_S: Final = 1e-6
"""What a row tells of times; a deadline is not sooner."""


class Came(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request when it comes in; see `TraceRow`."""

    arrival: float
    input_tokens: int = 0
    most_tokens: int | None = None
    deadline_s: float | None = None
    utility: float = 1.0
    tenant: str = "default"
    prefix: tuple[int, ...] = ()
    app: str = ""
    text: str | None = None
    function: bool = False

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return _ROW_BYTES + _HASH_BYTES * len(self.prefix) + len((self.text or "").encode(errors="replace"))


_ROW_BYTES, _HASH_BYTES = 512, 40


class Ids:
    """The tokens of a prompt as bytes, made once for all who record it."""

    def __init__(self, payload: Any) -> None:
        self._payload = payload

    @cached_property
    def data(self) -> bytes:
        """Four bytes each; none of what has no tokens. Raises OverflowError for what is no token."""
        prompt = self._payload.prompt if isinstance(self._payload, Generate) else ()
        return np.asarray(prompt, dtype=np.uint32).tobytes()


class Hashes:
    """Hashes of prompts, of no use to who does not have `key`: nobody can try out which prompt it was.

    `block_tokens` is how many tokens one hash of a prefix stands for.
    """

    def __init__(self, key: bytes, block_tokens: int) -> None:
        self._key = key
        self.block_tokens = block_tokens

    def tokens(self, ids: bytes) -> tuple[int, ...]:
        """One for each whole block of a prompt (see `Ids`), of all of it up to the block's end."""
        return self._chained(ids, 4 * self.block_tokens)

    def text(self, prompt: bytes) -> tuple[int, ...]:
        """As of tokens, of which a byte is a fourth."""
        return self._chained(prompt, CHARS_PER_TOKEN * self.block_tokens)

    def word(self, text: bytes) -> str:
        """Sixteen letters that stand for `text`."""
        return blake2b(text, key=self._key, digest_size=8).hexdigest()

    def _chained(self, data: bytes, size: int) -> tuple[int, ...]:
        found = []
        before = b""
        view = memoryview(data)
        for at in range(0, min(len(data) - size + 1, size * MOST_HASHES), size):
            before = blake2b(before + view[at : at + size], key=self._key, digest_size=8).digest()
            found.append(int.from_bytes(before, "big") >> 1)
        return tuple(found)


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def came(kind: Any, request: Request, ids: Ids, hashes: Hashes, start: float, *, text: bool) -> Came:
    """Of a request to a service of `kind`, in a recording that began at `start` (loop seconds)."""
    payload = request.payload
    deadline_s = _seconds(request.arrival, request.deadline)
    known = Came(
        arrival=_seconds(start, request.arrival) or 0.0,
        deadline_s=None if deadline_s is None else max(LEAST_S, deadline_s),
        utility=request.utility,
        tenant=request.tenant,
    )
    about = request.about if isinstance(request.about, Foreseen) else None
    replace = msgspec.structs.replace
    if isinstance(payload, Generate):
        features = None if about is None else about.features
        app = 0 if features is None else features.app
        return replace(
            known,
            input_tokens=len(payload.prompt),
            most_tokens=None if _as_much_as_fits(kind, payload) else payload.max_tokens,
            prefix=hashes.tokens(ids.data),
            app=hashes.word(app.to_bytes(8, "big")) if app else "",
            text=kind.text.decode(payload.prompt)[:MOST_TEXT] if text and isinstance(kind, LLM) else None,
        )
    if isinstance(payload, Forward):
        return _forwarded(replace(known, most_tokens=payload.max_tokens), payload, about, hashes, text)
    return replace(known, function=payload is not None)


def _as_much_as_fits(kind: Any, payload: Generate) -> bool:
    """Whether the answer's limit is the model's context, as it is where a client sets none."""
    try:
        context = kind.limits.context_tokens if isinstance(kind, LLM) else None
    except Unavailable:
        return False
    return context is not None and len(payload.prompt) + payload.max_tokens >= context


def _forwarded(known: Came, payload: Forward, about: Foreseen | None, hashes: Hashes, text: bool) -> Came:
    """Of a request to another server, whose tokens are guessed until it tells."""
    try:
        there = _fields.decode(payload.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        there = {}
    messages, words = there.get("messages"), there.get("prompt")
    prompt = bytes(there.get("prompt" if messages is None else "messages", b""))
    asked = asked_upstream(payload.path, messages, words, payload.max_tokens, None, known.tenant)
    tokens = about.prompt_tokens if about is not None else 0 if asked is None else asked.prompt_tokens
    return msgspec.structs.replace(
        known,
        input_tokens=tokens,
        prefix=hashes.text(prompt),
        app=hashes.word(asked.instruction.encode()) if asked is not None and asked.instruction else "",
        text=prompt.decode(errors="replace")[:MOST_TEXT] if text else None,
    )


def row(known: Came, outcome: Outcome, hashes: Hashes, answer: str | None) -> TraceRow:
    """How it went, with all that was known when it came. Raises ValueError for one that no reader would take."""
    prompt = _tokens(outcome, "prompt_tokens") or known.input_tokens
    on_replica = None if outcome.started is None else _seconds(outcome.started, outcome.ended)
    return within_span(
        check(
            TraceRow(
                arrival=known.arrival,
                input_tokens=prompt,
                output_tokens=_tokens(outcome, "output_tokens"),
                most_tokens=known.most_tokens,
                seconds=on_replica if known.function else None,
                service=outcome.service,
                tenant=known.tenant,
                deadline_s=known.deadline_s,
                utility=known.utility,
                prefix=known.prefix[: prompt // hashes.block_tokens],
                app=known.app,
                outcome=outcome.kind.value,
                first_s=_seconds(outcome.arrival, outcome.first),
                total_s=_seconds(outcome.arrival, outcome.ended),
                text=known.text,
                answer=answer,
            )
        )
    )


def _seconds(since: float, until: float | None) -> float | None:
    """To the microsecond: clocks tell no more, and a row is read by people too."""
    return None if until is None else round(max(0.0, until - since), 6)


def _tokens(outcome: Outcome, name: str) -> int:
    """As far as it can be meant: another server may count as it likes."""
    return int(min(max(outcome.usage.get(name, 0.0), 0.0), MOST_TOKENS))


class Answer:
    """The text of one answer, as its events bring it. Of another server it is the body as it came."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._room = MOST_TEXT

    def take(self, events: Sequence[Any]) -> None:
        """See `Stream.tap`."""
        for event in events:
            if isinstance(event, TextDelta):
                part = event.text
            elif isinstance(event, Body):
                part = event.data.decode(errors="replace")
            else:
                continue
            self._parts.append(part[: self._room])
            self._room -= len(self._parts[-1])

    def whole(self) -> str:
        """What has come so far."""
        return "".join(self._parts)
