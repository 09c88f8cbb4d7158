"""From what a client asks to `Generate`, with every check that needs the model: features, context, lengths.

What is wrong is a BadRequest whose `param` is the field of OpenAI's API that names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from foreserve.core import EngineInfo
from foreserve.engines.generation import Generate
from foreserve.errors import BadRequest, ContextExceeded
from foreserve.services.llm_text import Text

OFFLOAD_CHARS = 4096
"""Requests with more text than this are tokenised off the event loop, which would stand still for milliseconds."""

CHARS_PER_TOKEN = 128
"""No vocabulary in use has longer tokens: a text beyond context times this cannot fit and is not even tokenised."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How to continue, in the words of `Generate`.

    `max_tokens=None` is what the service's settings say, else `usual_tokens`, else up to the end of the context.
    `max_tokens_param` is how the client called it.
    """

    max_tokens: int | None = None
    max_tokens_param: str = "max_tokens"
    top_logprobs_param: str = "top_logprobs"
    usual_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a ready engine can do: the most tokens of prompt and answer together, its features."""

    context_tokens: int
    features: tuple[str, ...]
    vocabulary: int
    default_max_tokens: int | None = None

    @classmethod
    def of(cls, info: EngineInfo, text: Text, context_tokens: int | None, default_max_tokens: int | None) -> Limits:
        """The least of what model, engine, its KV cache and the settings allow."""
        bounds = [text.context_tokens, context_tokens, info.facts.get("context_tokens"), info.capacity.get("kv_tokens")]
        return cls(
            context_tokens=int(min(bound for bound in bounds if bound is not None)),
            features=info.features,
            vocabulary=text.vocabulary,
            default_max_tokens=default_max_tokens,
        )


def check_length(chars: int, limits: Limits, param: str) -> None:
    """Refuse, before it is tokenised, a text of so many characters that no tokenizer could fit it into the context."""
    if chars > limits.context_tokens * CHARS_PER_TOKEN:
        raise ContextExceeded(
            f"the prompt has {chars} characters; the model's context is {limits.context_tokens} tokens", param=param
        )


def generate(prompt: list[int], wanted: Sampling, limits: Limits, eos_ids: Sequence[int], param: str) -> Generate:
    """A checked `Generate`. `param` is the field the prompt came in.

    Raises BadRequest for what the engine lacks, ContextExceeded when prompt and answer do not fit.
    """
    check_features(wanted, limits)
    if not prompt:
        raise BadRequest("the prompt is empty; at least one token is needed", param=param)
    if not 0 <= min(prompt) <= max(prompt) < limits.vocabulary:
        raise BadRequest(f"a token id is outside the vocabulary; valid: 0 to {limits.vocabulary - 1}", param=param)
    room = limits.context_tokens - len(prompt)
    if room < 1:
        raise ContextExceeded(
            f"the prompt has {len(prompt)} tokens; the model's context is {limits.context_tokens}, "
            "which must hold the answer too",
            param=param,
        )
    if wanted.max_tokens is not None and wanted.max_tokens > room:
        raise ContextExceeded(
            f"{wanted.max_tokens} output tokens were asked for; the context is {limits.context_tokens} tokens and the "
            f"prompt takes {len(prompt)} of them, which leaves room for {room}",
            param=wanted.max_tokens_param,
        )
    return Generate(
        prompt=prompt,
        max_tokens=wanted.max_tokens or min(room, limits.default_max_tokens or wanted.usual_tokens or room),
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        seed=wanted.seed,
        logprobs=wanted.logprobs,
        frequency_penalty=wanted.frequency_penalty,
        presence_penalty=wanted.presence_penalty,
        stop_tokens=() if wanted.ignore_eos else tuple(eos_ids),
        stop=wanted.stop,
        ignore_eos=wanted.ignore_eos,
        json_schema=wanted.json_schema,
    )


def check_features(wanted: Sampling, limits: Limits) -> None:
    """Raises BadRequest naming the first thing asked for that the engine does not have."""
    asked = (
        (wanted.logprobs is not None, "logprobs", "logprobs"),
        (bool(wanted.logprobs), "top_logprobs", wanted.top_logprobs_param),
        (wanted.json_schema is not None, "json_schema", "response_format"),
        (wanted.frequency_penalty != 0, "penalties", "frequency_penalty"),
        (wanted.presence_penalty != 0, "penalties", "presence_penalty"),
        (wanted.seed is not None, "seed", "seed"),
        (wanted.ignore_eos, "ignore_eos", "ignore_eos"),
    )
    for is_asked, feature, param in asked:
        if is_asked and feature not in limits.features:
            has = ", ".join(limits.features) or "none of the optional ones"
            what = f"`{param}` above 0" if feature == "top_logprobs" else f"`{param}`"
            raise BadRequest(f"{what} is not supported by this model's engine; it has: {has}", param=param)
