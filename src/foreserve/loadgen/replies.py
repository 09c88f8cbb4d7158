"""What an answer of OpenAI's API says: its events, or its one JSON body, into a recording."""

from __future__ import annotations

from typing import Any

import msgspec

from foreserve.loadgen.records import Recording
from foreserve.loadgen.sse import Event


class Broken(ValueError):
    """The server reported an error inside its answer, or sent what is no answer."""


class _Delta(msgspec.Struct):
    """What a model produces beside text is output as well: reasoning, refusals, tool calls."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None

    def has_output(self) -> bool:
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.refusal
            or self.function_call
        )


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class Reply:
    """One answer being read. `complete` once the server has said that it is."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.complete = False

    def event(self, event: Event, at: float) -> None:
        """Take one event that came at `at`. Raises Broken for an error event or what is no JSON object."""
        if event.data == "[DONE]":
            self.complete = True
            return
        answer = self._decode(event.data)
        if event.name == "error":
            raise Broken(event.data[:2000])
        output = False
        for choice in answer.choices or ():
            part = choice.delta
            text = choice.text or (part.content if part is not None else None)
            output |= bool(choice.text) or (part is not None and part.has_output())
            if self.recording.text is not None and isinstance(text, str):
                self.recording.text.append(text)
        if output:
            self.recording.output(at)

    def whole(self, body: bytes) -> None:
        """Take an answer that came in one piece. Raises Broken when it is none."""
        answer = self._decode(body)
        if not answer.choices:
            raise Broken("the answer has no `choices`")
        for choice in answer.choices:
            text = choice.text or (choice.message.content if choice.message is not None else None)
            if self.recording.text is not None and isinstance(text, str):
                self.recording.text.append(text)
        self.complete = True

    def _decode(self, data: str | bytes) -> _Answer:
        try:
            answer = _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise Broken(f"not an answer of OpenAI's API ({error}): {data[:200]!r}") from None
        if answer.error is not None:
            raise Broken(data.decode("utf-8", "replace")[:2000] if isinstance(data, bytes) else data[:2000])
        if answer.usage is not None:
            # Some servers send it with every chunk; the last one is the whole.
            self.recording.prompt_tokens = answer.usage.prompt_tokens
            self.recording.output_tokens = answer.usage.completion_tokens
            self.complete = self.complete or not answer.choices
        for choice in answer.choices or ():
            if choice.finish_reason:
                self.recording.finish_reason = choice.finish_reason
                self.complete = True
        return answer
