"""The replies of OpenAI's API: whole and in parts, for chat and for text completions.

Each class writes one request's reply. `part` and `end` make the events of a streamed one, `whole` the other form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from foreserve.gateway.sse import event
from foreserve.services.llm_decoder import Ended, TextDelta, TokenLogprob

_encode = msgspec.json.Encoder().encode


class Answer:
    """One choice: what its events amount to."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.ended: Ended | None = None

    def take(self, events: Sequence[Any]) -> None:
        """Add a turn of events."""
        for happened in events:
            if isinstance(happened, TextDelta):
                self.texts.append(happened.text)
                self.logprobs.extend(happened.logprobs)
            else:
                self.ended = happened

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


def usage(ends: Sequence[Ended], n: int) -> dict[str, Any]:
    """Tokens of all choices together. The `n` choices of one prompt count it once."""
    prompt = sum(end.prompt_tokens for end in ends[::n])
    output = sum(end.output_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in ends[::n])},
    }


class Replies(Protocol):
    """One request's reply, in either form."""

    def begin(self, index: int) -> bytes:
        """The events that come before a choice's first text, if any."""
        ...

    def part(self, index: int, answer: Answer) -> bytes:
        """The events of what came in one turn of a choice."""
        ...

    def end(self, usage: dict[str, Any]) -> bytes:
        """The event that counts tokens."""
        ...

    def whole(self, answers: Sequence[Answer], usage: dict[str, Any]) -> bytes: ...


class _Common:
    """`logprobs` is how many candidates were asked for at each place, 0 for the chosen token alone."""

    def __init__(self, reply_id: str, created: int, model: str, include_usage: bool, logprobs: int | None) -> None:
        self._id = reply_id
        self._created = created
        self._model = model
        self._include_usage = include_usage
        self._logprobs = logprobs is not None
        self._rivals = bool(logprobs)

    def _event(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}
        if self._include_usage:
            chunk["usage"] = usage
        return event(_encode(chunk))

    def _whole(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any]) -> bytes:
        return _encode(
            {
                "id": self._id,
                "object": kind,
                "created": self._created,
                "model": self._model,
                "choices": choices,
                "usage": usage,
                "system_fingerprint": None,
            }
        )


class ChatReplies(_Common):
    """`chat.completion` and `chat.completion.chunk`."""

    def begin(self, index: int) -> bytes:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def part(self, index: int, answer: Answer) -> bytes:
        parts = b""
        if answer.texts:
            parts = self._chunk(index, {"content": answer.text}, logprobs=self._said(answer.logprobs))
        if answer.ended is not None:
            parts += self._chunk(index, {}, reason=answer.ended.reason)
        return parts

    def end(self, usage: dict[str, Any]) -> bytes:
        return self._event("chat.completion.chunk", [], usage) if self._include_usage else b""

    def whole(self, answers: Sequence[Answer], usage: dict[str, Any]) -> bytes:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._said(answer.logprobs),
                "finish_reason": answer.ended.reason if answer.ended else None,
            }
            for index, answer in enumerate(answers)
        ]
        return self._whole("chat.completion", choices, usage)

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._event("chat.completion.chunk", [choice])

    def _said(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": [_token(entry) for entry in logprobs], "refusal": None}


class CompletionReplies(_Common):
    """`text_completion`, whole and in parts."""

    def begin(self, index: int) -> bytes:
        return b""

    def part(self, index: int, answer: Answer) -> bytes:
        if not answer.texts and answer.ended is None:
            return b""
        return self._event("text_completion", [self._choice(index, answer)])

    def end(self, usage: dict[str, Any]) -> bytes:
        return self._event("text_completion", [], usage) if self._include_usage else b""

    def whole(self, answers: Sequence[Answer], usage: dict[str, Any]) -> bytes:
        return self._whole("text_completion", [self._choice(i, answer) for i, answer in enumerate(answers)], usage)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            logprobs = {
                "tokens": [entry.token for entry in answer.logprobs],
                "token_logprobs": [entry.logprob for entry in answer.logprobs],
                "top_logprobs": [dict(entry.top) for entry in answer.logprobs] if self._rivals else None,
                "text_offset": [entry.offset for entry in answer.logprobs],
            }
        reason = answer.ended.reason if answer.ended else None
        return {"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": reason}


def _token(entry: TokenLogprob) -> dict[str, Any]:
    """A token of chat's `logprobs`."""
    top = [_candidate(token, logprob) for token, logprob in entry.top]
    return {**_candidate(entry.token, entry.logprob), "top_logprobs": top}


def _candidate(token: str, logprob: float) -> dict[str, Any]:
    """Bytes are not known of a token that is not whole characters."""
    whole = "\ufffd" not in token
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()) if whole else None}
