"""One request on its way through OpenVINO's pipeline, in the library's words."""

from __future__ import annotations

import re
import secrets
from typing import Any

from foreserve.core import Finish, FinishReason, Work
from foreserve.engines.answer import TokenAnswer
from foreserve.engines.generation import Generate


class OpenVINORequest:
    """One request in the pipeline."""

    def __init__(self, work: Work, payload: Generate, quiet: bool = False) -> None:
        self.payload = payload
        self.answer = TokenAnswer(work, quiet)
        self.handle: Any = None
        self.ids: list[int] = []  # all given out, to go on from should the pipeline have to be built again
        self.stopped_by = 0  # 1 when a stop token ended it: counted, not given out
        self.stepped = False

    def give_out(self, output: Any, stopped: bool) -> None:
        """Hand on what one step made; `stopped` when that ended with a stop token, which is only counted."""
        ids: list[int] = output.generated_ids
        logprobs: list[float] | None = None if self.payload.logprobs is None else list(output.generated_log_probs)
        self.stepped = True
        if stopped and ids and ids[-1] in self.payload.stop_tokens:
            self.stopped_by = 1
            ids, logprobs = ids[:-1], logprobs and logprobs[:-1]
        self.ids.extend(ids)
        self.answer.put(ids, logprobs)

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """Close the answer, with what was counted."""
        usage = {
            "prompt_tokens": float(len(self.payload.prompt)),
            "output_tokens": float(len(self.ids) + self.stopped_by),
        }
        self.answer.end(Finish(reason=reason, error=error, usage=usage))


def config_of(genai: Any, payload: Generate, max_tokens: int) -> Any:
    """The library's words for what is asked. It checks them itself when the request is added."""
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = max_tokens
    config.do_sample = payload.temperature > 0
    if config.do_sample:
        config.temperature = payload.temperature
        config.top_p = payload.top_p
        # The library's own default is one fixed seed for all.
        config.rng_seed = secrets.randbits(63) if payload.seed is None else payload.seed % 2**63
    config.frequency_penalty = payload.frequency_penalty
    config.presence_penalty = payload.presence_penalty
    config.logprobs = 0 if payload.logprobs is None else 1
    config.ignore_eos = payload.json_schema is None and (payload.ignore_eos or not payload.stop_tokens)
    # The library wants an end token named even where none counts.
    stop_tokens = payload.stop_tokens or (0,)
    config.eos_token_id = stop_tokens[0]
    config.stop_token_ids = set(stop_tokens)
    if payload.json_schema is not None:
        config.structured_output_config = genai.StructuredOutputConfig(json_schema=payload.json_schema)
    return config


def in_words(error: Exception) -> str:
    """The library's message without its source paths, short enough to send."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^(\[[\d:]+\] )?/\S+:\d+: ", "", lines[-1])[-300:] if lines else type(error).__name__
