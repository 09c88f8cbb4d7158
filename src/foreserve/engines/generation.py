"""What a language-model service and its engines say to each other, inside `Work.payload` and `Chunk.data`.

To everything between them these are opaque.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """Continue `prompt` (token ids) by at most `max_tokens` tokens.

    Greedy when `temperature` is 0. `logprobs` asks for the log-probability of each chosen token and that many of its
    rivals (0: of the chosen alone). Generation ends at any of `stop_tokens`, which is not part of the answer's text but
    is counted as an output token; with `ignore_eos` at none. `stop` holds stop strings, which the service matches
    itself. `predicted_tokens` is a hint, never a limit; the true length is not knowable here. Where an answer goes on
    that another engine had begun, `continued` of the prompt's last tokens are the answer's own.
    """

    prompt: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None
    priority: int | None = None
    predicted_tokens: int | None = None
    continued: int = 0


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """New token ids, oldest first, with their log-probabilities where they were asked for.

    `top` has for each token its likeliest candidates as (id, log-probability), best first, where rivals were asked for.
    """

    ids: list[int]
    logprobs: list[float] | None = None
    top: list[list[tuple[int, float]]] | None = None


class Sized(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a simulated engine by its sizes alone, in tokens: a prompt of `prompt_tokens`, at most `max_tokens`.

    `prefix` has a hash for each whole block of `block_tokens` of the prompt (see `TraceRow.prefix`). `continued` is as
    in `Generate`. The true length is with the engine (`TrueLengths`) and nowhere else.
    """

    prompt_tokens: int
    max_tokens: int
    prefix: tuple[int, ...] = ()
    block_tokens: int = 512
    continued: int = 0


class Count(msgspec.Struct, frozen=True):
    """So many new tokens, of an answer whose tokens mean nothing."""

    tokens: int


class TrueLengths(Protocol):
    """The oracle: how long answers will really be. A simulated engine alone is given one."""

    def output_tokens(self, request_id: str) -> int:
        """Of the whole answer, from its first attempt on. Raises KeyError for a request that it does not know."""
        ...


FEATURES = ("logprobs", "top_logprobs", "json_schema", "penalties", "seed", "ignore_eos", "resume")
"""What an LLM engine may name in `EngineInfo.features`; a request for what it does not name is a 400.

`resume` is of use to us alone: by `continued` it goes on with the draws of a seed and with what penalties count.
"""

# Usage keys of a language model's `Finish.usage`: "prompt_tokens", "output_tokens", "cached_tokens".
# Facts of its `EngineInfo.facts`: "context_tokens" (int), "weights" (str), "max_batched_tokens" (int),
# "block_tokens" (int), "prefix_caching" (bool).
# Its capacity names "slots" (sequences at once) and "kv_tokens".
