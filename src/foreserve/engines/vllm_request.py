"""One request on its way through vLLM, in its words and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from foreserve.core import Chunk, Finish, FinishReason, Work
from foreserve.engines.answer import Numbered
from foreserve.engines.generation import Generate, Tokens

URGENCY: Final = 1 << 24
"""More than the tokens of any answer: a request's class goes before its foreseen length."""


def priority_of(work: Work, payload: Generate, plan: Any) -> int:
    """Its place in vLLM's queue; lower runs first, and who is highest is preempted first when the KV cache is full.

    As the plan says (`{"priority": n}`); else by the request's own class (`Generate.priority`, 0 where it has none)
    and within that by the foreseen length of the answer, shortest first. Without a forecast that is its limit.
    """
    if isinstance(plan, Mapping) and "priority" in plan:
        return int(plan["priority"])
    tokens = payload.predicted_tokens
    if tokens is None and work.forecast is not None:
        tokens = round(work.forecast.output.mean)
    expected = payload.max_tokens if tokens is None else min(tokens, payload.max_tokens)
    return (payload.priority or 0) * URGENCY + max(0, expected - payload.continued)


def sampling(payload: Generate) -> dict[str, Any]:
    """Keyword arguments of `SamplingParams`, but for the JSON schema, which has a type of its own.

    vLLM's own end tokens never count: those of `stop_tokens` are all that a request wants. With a JSON schema
    `ignore_eos` has no effect, or an answer would go on after its end.
    """
    stops = () if payload.ignore_eos and payload.json_schema is None else payload.stop_tokens
    return {
        "max_tokens": payload.max_tokens,
        "temperature": payload.temperature,
        "top_p": payload.top_p,
        "seed": None if payload.seed is None else payload.seed % 2**63,
        "frequency_penalty": payload.frequency_penalty,
        "presence_penalty": payload.presence_penalty,
        "logprobs": payload.logprobs,
        "stop_token_ids": list(stops),
        "ignore_eos": payload.json_schema is None,
        "detokenize": False,
    }


class VLLMRequest:
    """What has been given out of one request."""

    def __init__(self, work: Work, payload: Generate) -> None:
        self.payload = payload
        self.cancelled = False
        self._numbered = Numbered(work)
        self._stops = frozenset(payload.stop_tokens)
        self._tokens = 0
        self._cached = 0

    def chunk(self, output: Any) -> Chunk | None:
        """Of a `RequestOutput` with what is new; `None` where that is nothing. A stop token is only counted."""
        said = output.outputs[0]
        ids = list(said.token_ids)
        self._tokens += len(ids)
        self._cached = output.num_cached_tokens or self._cached
        logprobs = said.logprobs if self.payload.logprobs is not None else None
        if said.finish_reason == "stop" and ids and ids[-1] in self._stops:
            ids = ids[:-1]
        finish = self._finish(said.finish_reason) if output.finished else None
        data = _tokens(ids, logprobs, self.payload.logprobs or 0) if ids else None
        return None if data is None and finish is None else self._numbered.chunk(data, finish)

    def end(self, reason: FinishReason, error: str | None = None) -> Chunk:
        """The last chunk, where vLLM gave none."""
        return self._numbered.chunk(finish=self._ended(reason, error))

    def _finish(self, reason: str | None) -> Finish:
        if reason in ("stop", "length"):
            return self._ended("stop" if reason == "stop" else "length")
        if reason == "abort" and self.cancelled:
            return self._ended("cancelled")
        return self._ended("error", f"vLLM ended the request with {reason!r}")

    def _ended(self, reason: FinishReason, error: str | None = None) -> Finish:
        usage = {"prompt_tokens": float(len(self.payload.prompt)), "output_tokens": float(self._tokens)}
        if self._cached:
            usage["cached_tokens"] = float(self._cached)
        return Finish(reason=reason, error=error, usage=usage)


def _tokens(ids: list[int], positions: Sequence[Mapping[int, Any]] | None, rivals: int) -> Tokens:
    """vLLM tells the chosen token beside as many of the likeliest as were asked for, best first by their `rank`."""
    if positions is None:
        return Tokens(ids=ids)
    chosen = [float(position[token].logprob) for token, position in zip(ids, positions, strict=False)]
    if not rivals:
        return Tokens(ids=ids, logprobs=chosen)
    top = [
        sorted(((token, float(told.logprob)) for token, told in position.items()), key=lambda each: -each[1])[:rivals]
        for position in positions[: len(ids)]
    ]
    return Tokens(ids=ids, logprobs=chosen, top=top)
