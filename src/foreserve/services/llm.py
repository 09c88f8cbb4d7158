"""The language-model kind: what it costs, what runs it, and how its answers are read.

The gateway asks `chat` or `complete` for a payload, submits it, and reads `TextDelta`s and one `Ended`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from foreserve.chosen import placement_name
from foreserve.clock import wall
from foreserve.core import EngineInfo, EngineSpec, Outcome, Price, Request, Work
from foreserve.engines.generation import Generate
from foreserve.errors import BadRequest, ConfigError, RequestError, Unavailable
from foreserve.parsing import parse, with_first
from foreserve.registry import entry
from foreserve.services.foreseeing import Foreseer
from foreserve.services.foreseen import Foreseen, tokens_cost
from foreserve.services.llm_asked import asked_of_chat, asked_of_texts
from foreserve.services.llm_decoder import TextDecoder
from foreserve.services.llm_engine import SIMULATED, engine_name, need_packages
from foreserve.services.llm_preparing import Preparing
from foreserve.services.llm_prompt import OFFLOAD_CHARS, Limits, Sampling, check_length, generate
from foreserve.services.llm_text import ByteText, Text
from foreserve.services.llm_weights import shared_weights
from foreserve.services.prefixes import of_tokens, wanted
from foreserve.settings import LLMSettings

CONTINUOUS_POLICY = "hrrn"
STATIC_POLICY = "magnus"
"""Batch policies that suit an engine which takes work any time, and one that runs a batch to its end."""

Progress = Callable[[float, str], None]
"""`progress(done, what)`: the share done (0 to 1) of one slow step, and its name."""


class LLM:
    """A language model on this machine: `LLM("smollm2", max_running=16)`.

    `model` is a packaged model's name, a GGUF file, a Hugging Face folder, or `"simulated"` (no weights; for load
    tests and the simulator). The other words are those of `LLMSettings`; what is wrong among them is a ConfigError.
    """

    name = "llm"
    idempotent = True

    def __init__(self, model: str | None = None, /, **words: Any) -> None:
        words = with_first(words, "model", model, "LLM(...)", "the model is")
        self._setup(parse(words, LLMSettings, f"LLM({model!r})" if model else "LLM(...)"), "LLM(...)")

    @classmethod
    def from_settings(cls, settings: LLMSettings, where: str) -> LLM:
        """As an app file in YAML makes it; `where` is named in errors."""
        made = cls.__new__(cls)
        made._setup(settings, where)
        return made

    def _setup(self, settings: LLMSettings, where: str) -> None:
        self.settings = settings
        self.where = where
        self._engine = engine_name(settings)
        self._factory = entry("engine", self._engine, f"{where}: engine").value
        if settings.device != "cpu" and self._engine != "transformers":
            words = f"`device` is {settings.device!r}, and the engine {self._engine!r} computes on the CPU"
            if self._engine == "vllm":
                words = "`device` is not for vLLM, which takes the GPUs that it sees: set CUDA_VISIBLE_DEVICES in `env`"
            raise ConfigError(f"{where}: {words}; valid here: cpu, or engine: transformers")
        if (settings.model == SIMULATED) != (self._engine == SIMULATED):
            raise ConfigError(f'{where}: model "{SIMULATED}" and engine "{SIMULATED}" go together only')
        self._text: Text | None = None
        self._options: dict[str, Any] = {}
        self._limits: Limits | None = None
        self._preparing = Preparing()
        self.retry_s: Callable[[], float] = lambda: 1.0
        """When to come again while no replica has been ready; whoever starts them knows better."""
        self._static = self._engine == "transformers" or settings.engine_options.get("batching") == "static"
        self.foreseer = Foreseer(settings.foresight, words=self._engine != SIMULATED)

    @property
    def placement(self) -> str:
        """The placement used when the settings say `auto`: looking ahead, but for one batch at a time."""
        return "least_requests" if self._static else "anticipated"

    # --- before it starts

    @property
    def policy(self) -> str:
        """What suits the engine: as it says once one has been ready, before that as it is known by its name."""
        return STATIC_POLICY if self._static else CONTINUOUS_POLICY

    def check(self) -> None:
        """Whether the model is there and its engine can run it. Reads no weights. Raises ConfigError."""
        if self._engine != SIMULATED:
            from foreserve.models.catalog import locate

            source = locate(self.settings.model, self.where)
            need_packages(self._engine, self.where)
            from foreserve.models.prepare import prepared_already

            prepared_already(source, self._engine, self.settings.weights)

    @property
    def engine_name(self) -> str:
        """The engine that was chosen, also where the settings say `auto`."""
        return self._engine

    def memory_bytes(self) -> int:
        """About what one replica will hold. Reads no weights. Raises ConfigError when the model is not there."""
        if self._engine == SIMULATED:
            return 0
        from foreserve.services.llm_memory import memory_bytes

        return memory_bytes(self.settings, self._engine, self.where)

    def prepare(self, progress: Progress | None = None) -> None:
        """Make what the engine loads, once: converted weights and a tokenizer, kept in the cache folder.

        Takes seconds the first time. Raises ConfigError when the model is missing, broken or hostile.
        """
        if self._text is not None:
            return
        if self._engine == SIMULATED:
            self._text = text = ByteText(self.settings.context_tokens or 8192)
            self._options = {"slots": self.settings.max_running, "context_tokens": text.context_tokens}
            return
        need_packages(self._engine, self.where)
        from foreserve.services.llm_prepared import prepared

        self._text, self._options = prepared(self.settings, self._engine, self.where, progress)

    # --- the kind

    def engines(self) -> list[EngineSpec]:
        """How the workers make their engines, all alike. Prepares the model where that is still to be done."""
        return [self._engine_spec()] * self.settings.bounds[1]

    def _engine_spec(self) -> EngineSpec:
        self.prepare()
        settings = self.settings
        options = {**self._options, **settings.engine_options}
        weights = shared_weights(self._engine, options)
        if weights:
            options["shared_weights"] = [ref.name for ref in weights]
        return EngineSpec(
            factory=self._factory,
            options=options,
            weights=weights,
            python=settings.python,
            env=settings.env,
            start_limit_s=settings.start_limit_s,
            liveness_s=settings.liveness_s,
            imports=(self._factory.partition(":")[0],),
        )

    def price(self, request: Request) -> Price:
        payload: Generate = request.payload
        cost = tokens_cost(len(payload.prompt), payload.max_tokens)
        price = self.foreseer.price(request.id, request.about, cost, ramps=not self._static)
        if not wanted(self.settings, placement_name(self), self.settings.bounds[1]):
            return price
        return msgspec.structs.replace(price, prefix=of_tokens(payload.prompt))

    def settled(self, outcome: Outcome) -> None:
        self.foreseer.settled(outcome)

    def ready(self, info: EngineInfo) -> None:
        self._static = info.batching == "static"
        self.prepare()
        settings = self.settings
        self._limits = Limits.of(info, self.text, settings.context_tokens, settings.default_max_tokens)

    def decoder(self, work: Work) -> TextDecoder:
        resumes = self._limits is not None and "resume" in self._limits.features
        return TextDecoder(work, self.text, resumes=resumes)

    def events_bound(self, payload: Generate) -> int:
        """A delta for each token, one for what was held back, and the end."""
        return payload.max_tokens + 2

    # --- what the gateway asks

    @property
    def text(self) -> Text:
        """The model's tokenizer and template, once it is prepared."""
        if self._text is None:
            raise Unavailable("the model is still being prepared", retry_after=1.0)
        return self._text

    @property
    def limits(self) -> Limits:
        """What can be asked for. Raises Unavailable until a replica has been ready."""
        if self._limits is None:
            raise Unavailable("the first replica of this model is still starting", retry_after=self.retry_s())
        return self._limits

    async def chat(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> Generate:
        """The payload of a conversation. Raises BadRequest, ContextExceeded, Shed, Unavailable."""
        text, limits = self.text, self.limits
        # A template has words of its own for every message, even an empty one.
        chars = sum(len(message["content"]) + 16 for message in messages)
        check_length(chars, limits, "messages")
        at = wall()

        def encode() -> list[int]:
            try:
                return text.conversation(messages, at)
            except RequestError:
                raise
            except Exception as error:
                # Whatever a template raises, its own `raise_exception` among it, is about these messages.
                raise BadRequest(f"the chat template refuses these messages: {error}", param="messages") from error

        prompt = encode() if chars <= OFFLOAD_CHARS else await self._preparing.run(encode)
        return generate(prompt, sampling, limits, text.eos_ids, "messages")

    async def about_chat(self, messages: Sequence[Mapping[str, Any]], payload: Generate, tenant: str) -> Foreseen:
        """What is foreseen of the next answer, for `Request.about`."""
        return (await self.foreseer.about([asked_of_chat(messages, payload, tenant)]))[0]

    async def about_texts(
        self, prompts: Sequence[str | Sequence[int]], payloads: Sequence[Generate], tenant: str
    ) -> list[Foreseen]:
        """What is foreseen of each text's continuation."""
        return await self.foreseer.about(asked_of_texts(prompts, payloads, tenant))

    async def complete(self, prompts: Sequence[str | Sequence[int]], sampling: Sampling) -> list[Generate]:
        """The payloads that continue texts or token ids as they are, one for each. Raises as `chat` does."""
        text, limits = self.text, self.limits
        lengths = [len(prompt) for prompt in prompts if isinstance(prompt, str)]
        for length in lengths:
            check_length(length, limits, "prompt")

        def encode() -> list[list[int]]:
            return [text.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]

        # Many short prompts hold the loop up as one long one does.
        every = encode() if sum(lengths) <= OFFLOAD_CHARS else await self._preparing.run(encode)
        return [generate(ids, sampling, limits, text.eos_ids, "prompt") for ids in every]
