"""The request bodies of OpenAI's API, decoded straight from bytes, with errors that name the field.

What our own engines cannot do is refused by name unless its value asks for nothing (`n: 1`, `logit_bias: {}`); a field
that is not known at all is refused with the ones that are. Nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from foreserve.errors import BadRequest
from foreserve.gateway.decoding import Decoder

MAX_CHOICES = 128
"""The most answers one request may ask for: prompts times `n`."""

_INT64 = 2**63
Tokens = Annotated[int, Meta(ge=1, le=_INT64 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Tags = dict[str, Any]


class Target(msgspec.Struct, frozen=True, gc=False):
    """As much of a body as is needed to know who it is for."""

    model: str
    stream: bool | None = None


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is decoded from a client: unknown fields are refused."""


class TermsBody(Body, frozen=True, kw_only=True):
    """Terms of one request, for clients whose headers do not come through. `slo_ms` is milliseconds from now."""

    slo_ms: Annotated[float, Meta(gt=0, le=86_400_000)] | None = None
    utility: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    tenant: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@-]{1,64}$")] | None = None


class StreamOptions(Body, frozen=True, kw_only=True):
    """`include_usage` adds a last event that counts tokens. There is no obfuscation, as a client may ask."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Body, frozen=True, kw_only=True):
    """The schema that an answer must satisfy."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body, frozen=True, kw_only=True):
    """`text`, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Part(Body, frozen=True, kw_only=True):
    """A part of a message's content. Our own engines read text alone."""

    type: str
    text: str | None = None
    refusal: Any = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None


class Message(Body, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    refusal: Any = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning_content: Any = None


class Common(Body, frozen=True, kw_only=True):
    """What chat and text completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=16)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    foreserve: TermsBody | None = None
    logit_bias: Any = None


class ChatBody(Common, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    metadata: Tags | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    parallel_tool_calls: bool | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenPrompt = Annotated[list[TokenId], Meta(min_length=1)]


class CompletionBody(Common, frozen=True, kw_only=True):
    """`POST /v1/completions`. `prompt` is a text, several, token ids, or several lists of them."""

    prompt: str | Annotated[list[str | TokenId | TokenPrompt], Meta(min_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, one for each answer or group of `n` answers."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(item) for item in self.prompt}
        if kinds == {int}:
            return [self.prompt]  # type: ignore[list-item]
        if len(kinds) > 1:
            raise BadRequest("a prompt is a text, texts, token ids or lists of token ids; not a mix", param="prompt")
        return self.prompt  # type: ignore[return-value]


_NOTHING_ASKED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "logit_bias": ({},),
    "store": (False,),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}
"""Values of fields our engines lack, with which a client asks for nothing."""

_LACKING = (
    "tools", "tool_choice", "functions", "function_call", "modalities", "audio", "prediction", "reasoning_effort",
    "verbosity", "web_search_options", "logit_bias", "store", "suffix", "echo", "best_of",
)  # fmt: skip

_chat = Decoder(ChatBody, hidden=_LACKING)
_completion = Decoder(CompletionBody, hidden=_LACKING)
_target = Decoder(Target)


def decode_target(raw: bytes) -> Target:
    """Which model a body is for. Raises BadRequest."""
    return _target.decode(raw)


def decode_chat(raw: bytes) -> ChatBody:
    """A chat body in which everything can be done by some engine of ours. Raises BadRequest with `param`."""
    asked = _chat.decode(raw)
    _refuse_lacking(asked)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise BadRequest("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
    if asked.max_tokens is not None and asked.max_completion_tokens not in (None, asked.max_tokens):
        raise BadRequest("`max_tokens` and `max_completion_tokens` differ; give one of them", param="max_tokens")
    wanted = asked.response_format
    if wanted is not None and (wanted.type == "json_schema") != (wanted.json_schema is not None):
        raise BadRequest(
            "`response_format` of type json_schema has `json_schema`, and no other has", param="response_format"
        )
    return asked


def decode_completion(raw: bytes) -> CompletionBody:
    """A completions body in which everything can be done by some engine of ours. Raises BadRequest with `param`."""
    asked = _completion.decode(raw)
    _refuse_lacking(asked)
    if len(asked.prompts()) * (asked.n or 1) > MAX_CHOICES:
        raise BadRequest(f"prompts times `n` is more than {MAX_CHOICES}", param="n")
    return asked


def _refuse_lacking(asked: Common) -> None:
    for name in _LACKING:
        value = getattr(asked, name, None)
        if value is not None and value not in _NOTHING_ASKED.get(name, ()):
            raise BadRequest(f"`{name}` is not supported by this model's engine", param=name)
    if asked.stream_options is not None and not asked.stream:
        raise BadRequest("`stream_options` needs `stream: true`", param="stream_options")


def messages_in_words(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Role and text of each message, as a chat template reads them. Raises BadRequest for what is not text."""
    return [_in_words(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _in_words(message: Message, place: str) -> dict[str, str]:
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name) not in (None, []):
            raise BadRequest(f"`{name}` is not supported by this model's engine", param=f"{place}.{name}")
    content = message.content
    if content is None:
        raise BadRequest("a message needs `content`", param=f"{place}.content")
    if not isinstance(content, str):
        for index, part in enumerate(content):
            if part.type != "text" or part.text is None:
                raise BadRequest(
                    f"content of type {part.type[:64]!r} is not supported by this model's engine; valid: text",
                    param=f"{place}.content[{index}]",
                )
        content = "".join(part.text or "" for part in content)
    said = {"role": "system" if message.role == "developer" else message.role, "content": content}
    if message.name is not None:
        said["name"] = message.name
    return said
