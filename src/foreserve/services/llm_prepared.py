"""A real model behind a language-model service: found, prepared once, and put into words that its engine takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from foreserve.errors import BadRequest
from foreserve.models.catalog import locate
from foreserve.models.chat_template import ChatTemplate
from foreserve.models.facts import ModelFacts
from foreserve.models.prepare import PreparedModel, prepare
from foreserve.models.tokenizer import Detokenizer, Tokenizer
from foreserve.services.llm_memory import static_kv_tokens
from foreserve.settings import LLMSettings

_wall: ContextVar[float] = ContextVar("wall", default=0.0)
"""The time for a template that writes the date: it may be rendered in a thread, where there is no loop to ask."""


class PreparedText:
    """A prepared model's tokenizer and chat template (see `Text`)."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, facts: ModelFacts) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.context_tokens = facts.context_tokens
        self.vocabulary = facts.vocab_size
        self.eos_ids = facts.eos_ids

    @classmethod
    def of(cls, model: PreparedModel) -> PreparedText:
        """Raises ConfigError for a tokenizer or a template that is not usable, a hostile one among them."""
        facts = model.facts
        template = None
        if facts.chat_template is not None:
            template = ChatTemplate(facts.chat_template, facts.bos_token, facts.eos_token, wall=_wall.get)
        return cls(Tokenizer.load(model), template, facts)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=True)

    def conversation(self, messages: Sequence[Mapping[str, Any]], wall: float) -> list[int]:
        if self._template is None:
            raise BadRequest("this model has no chat template; use /v1/completions", param="messages")
        _wall.set(wall)
        return self._tokenizer.encode(self._template.render([dict(said) for said in messages]))

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def detokenizer(self) -> Detokenizer:
        return self._tokenizer.detokenizer()


def prepared(
    settings: LLMSettings, engine: str, where: str, progress: Callable[[float, str], None] | None
) -> tuple[PreparedText, dict[str, Any]]:
    """The model's text side, and the options of `engine` for it. Slow the first time. Raises ConfigError."""
    model = prepare(locate(settings.model, where), engine, settings.weights, progress)
    return PreparedText.of(model), _options(settings, engine, model)


def _options(settings: LLMSettings, engine: str, model: PreparedModel) -> dict[str, Any]:
    """The settings in the words of each engine of ours; a user's own gets what all of them take."""
    options: dict[str, Any] = {
        "model_path": str(model.weights_path),
        "max_running": settings.max_running,
        "threads": settings.threads,
        "context_tokens": settings.context_tokens,
    }
    match engine:
        case "openvino":
            options |= {
                "max_batched_tokens": settings.max_batched_tokens,
                "kv_cache_gb": settings.kv_cache_gb,
                "prefix_caching": settings.prefix_caching,
                "exact": settings.exact,
                "cache_dir": str(model.folder),
            }
        case "transformers":
            tokens = static_kv_tokens(settings, model.facts, model.weights)
            options |= {"weights": model.weights or "bf16", "kv_tokens": tokens, "device": settings.device}
        case "vllm":
            options |= {
                "max_batched_tokens": settings.max_batched_tokens,
                "kv_cache_gb": settings.kv_cache_gb,
                "prefix_caching": settings.prefix_caching,
                "weights": model.weights or "auto",
            }
    return options
