"""The language-model kind: what it costs, what runs it, and how its answers are read.

The gateway asks `chat` or `complete` for a payload, submits it, and reads `TextDelta`s and one `Ended`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foreserve.clock import wall
from foreserve.core import EngineInfo, EngineSpec, Outcome, Price, Request, Work
from foreserve.engines.generation import Generate
from foreserve.errors import BadRequest, ConfigError, RequestError, Unavailable
from foreserve.foresight.length import Asked
from foreserve.registry import entry
from foreserve.services.llm_decoder import TextDecoder
from foreserve.services.llm_preparing import Preparing
from foreserve.services.llm_prompt import OFFLOAD_CHARS, Limits, Sampling, check_length, generate
from foreserve.services.llm_text import ByteText, Text
from foreserve.settings import LLMSettings, parse

SIMULATED = "simulated"
"""The name of the model without weights and of the engine that runs it."""

RESERVED_TOKENS = 1024
"""The most KV cache that is kept free for an answer. Few answers come near their limit, which is the whole context
where a request names none; one that outgrows this makes a full engine preempt and recompute, which loses nothing."""

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
        if model is not None:
            if "model" in words:
                raise ConfigError("LLM(...): the model is named twice, first without and then with `model=`")
            words["model"] = model
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
        self._engine = _engine_name(settings)
        self._factory = entry("engine", self._engine, f"{where}: engine").value
        if (settings.model == SIMULATED) != (self._engine == SIMULATED):
            raise ConfigError(f'{where}: model "{SIMULATED}" and engine "{SIMULATED}" go together only')
        self._text: Text | None = None
        self._options: dict[str, Any] = {}
        self._limits: Limits | None = None
        self._preparing = Preparing()

    # --- before it starts

    @property
    def policy(self) -> str:
        """Fixed batches for an engine that runs one batch to its end, first come for one that takes work any time."""
        static = self._engine == "transformers" or self.settings.engine_options.get("batching") == "static"
        return "fixed" if static else "fcfs"

    def check(self) -> None:
        """Whether the model is there and its engine can run it. Reads no weights. Raises ConfigError."""
        if self._engine != SIMULATED:
            from foreserve.models.catalog import locate

            source = locate(self.settings.model, self.where)
            _need_packages(self._engine, self.where)
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
        _need_packages(self._engine, self.where)
        from foreserve.services.llm_prepared import prepared

        self._text, self._options = prepared(self.settings, self._engine, self.where, progress)

    # --- the kind

    def engines(self) -> list[EngineSpec]:
        """How the workers make their engines, all alike. Prepares the model where that is still to be done."""
        return [self._engine_spec()] * self.settings.replicas

    def _engine_spec(self) -> EngineSpec:
        self.prepare()
        settings = self.settings
        return EngineSpec(
            factory=self._factory,
            options={**self._options, **settings.engine_options},
            python=settings.python,
            env=settings.env,
            start_limit_s=settings.start_limit_s,
            liveness_s=settings.liveness_s,
        )

    def price(self, request: Request) -> Price:
        payload: Generate = request.payload
        kv_tokens = float(len(payload.prompt) + min(payload.max_tokens, RESERVED_TOKENS))
        return Price(cost={"slots": 1.0, "kv_tokens": kv_tokens})

    def settled(self, outcome: Outcome) -> None:
        """Learn how long an answer was and how long it took."""

    def ready(self, info: EngineInfo) -> None:
        self.prepare()
        settings = self.settings
        self._limits = Limits.of(info, self.text, settings.context_tokens, settings.default_max_tokens)

    def decoder(self, work: Work) -> TextDecoder:
        return TextDecoder(work, self.text)

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
            raise Unavailable("no replica of this model has been ready yet", retry_after=1.0)
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

    async def about_chat(self, messages: Sequence[Mapping[str, Any]], payload: Generate, tenant: str) -> Asked:
        """What is known of the next answer: the system messages are its instruction, the last message its text."""
        instruction = "\n".join(message["content"] for message in messages if message["role"] == "system")
        text = messages[-1]["content"] if messages else ""
        return self._asked(instruction, text, payload, tenant)

    async def about_texts(
        self, prompts: Sequence[str | Sequence[int]], payloads: Sequence[Generate], tenant: str
    ) -> list[Asked]:
        """What is known of each text's continuation. Token ids have no text to tell from."""
        texts = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
        return [self._asked("", text, payload, tenant) for text, payload in zip(texts, payloads, strict=True)]

    def _asked(self, instruction: str, text: str, payload: Generate, tenant: str) -> Asked:
        tokens = len(payload.prompt)
        share = len(text) / ((len(text) + len(instruction)) or 1)
        return Asked(
            instruction=instruction,
            text=text,
            input_tokens=round(tokens * share),
            prompt_tokens=tokens,
            most=payload.max_tokens,
            tenant=tenant,
        )

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


def _engine_name(settings: LLMSettings) -> str:
    """`auto`: what runs such a model here.

    Simulated for the model of that name; transformers for a Hugging Face folder, and where it alone is installed;
    else OpenVINO, the embedded default.
    """
    if settings.engine != "auto":
        return settings.engine
    if settings.model == SIMULATED:
        return SIMULATED
    folder = Path(settings.model).expanduser()
    if (folder / "config.json").is_file() and not (folder / "openvino_model.xml").is_file():
        return "transformers"
    other = find_spec("openvino_genai") is None and find_spec("torch") is not None
    return "transformers" if other or settings.python is not None else "openvino"


def _need_packages(engine: str, where: str) -> None:
    """Raises ConfigError with the command that installs what reads model files, where it is missing here."""
    missing = [name for name in ("gguf", "jinja2", "tokenizers") if find_spec(name) is None]
    if missing:
        extra = "torch" if engine == "transformers" else "openvino"
        raise ConfigError(
            f"{where}: engine {engine!r} needs {', '.join(missing)}; install with: pip install 'foreserve[{extra}]'"
        )
