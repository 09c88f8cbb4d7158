"""The encoder kind: texts or images become vectors, scores or the answers of tasks, at the tokens that time allows.

The gateway makes a payload by `texts`, `pairs`, `token_ids` or `infer`, asks `about` for what may serve it, submits
both, and reads one `Encoding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from foreserve.calling import Output
from foreserve.clock import precise
from foreserve.core import EngineInfo, EngineSpec, Forecast, Length, Outcome, Price, Request, Work
from foreserve.elastic.calibrating import calibrated
from foreserve.elastic.folder import EncoderFacts, read_folder, read_tasks
from foreserve.elastic.payload import Encode, TaskFacts
from foreserve.elastic.profile import UNKNOWN, Profile, Timing
from foreserve.elastic.setting import by_tokens, parse_setting
from foreserve.elastic.shared import shared_files
from foreserve.elastic.words import Words
from foreserve.errors import BadRequest, ConfigError, Unavailable
from foreserve.models.catalog import locate
from foreserve.parsing import parse, with_first
from foreserve.registry import entry
from foreserve.services.encoder_plans import PLAINLY, Allowed, Terms, allowed, terms_of
from foreserve.services.encoder_reading import Answered, Reading
from foreserve.services.encoder_tensors import (
    IMAGE_INPUTS,
    TEXT_INPUTS,
    answer,
    check_names,
    image,
    outputs,
    task_named,
    text,
)
from foreserve.services.inference import ModelTensor
from foreserve.services.served import Progress
from foreserve.settings import EncoderSettings
from foreserve.tensors import Tensor

TASKS = "tasks"
"""The folder inside a model's own that has the tasks it brings along."""

POLICY = "elastic"
"""The batch policy that knows token settings."""

_NO_TOKENS = Length(mean=1.0, p50=1.0, p80=1.0, p95=1.0, source="batches")

SAMPLES = (
    "What is the capital of France?",
    "The quick brown fox jumps over the lazy dog near the bank of the river.",
    "A method is described for measuring the noise figure of microwave receivers and compared with theory.",
    "Shares fell on Monday after the company said that profits would be lower than expected this quarter, as costs of "
    "raw materials rose and demand from abroad weakened; analysts had hoped for a modest gain.",
    "I waited forty minutes for a cold meal and nobody apologised. The dessert was lovely, though, and my daughter "
    "liked the music. Would I come again? Perhaps for coffee, on a quieter day, if they have found more staff by then.",
    "To reset the device, hold the button for ten seconds until the light turns blue, then release it and wait.",
)
"""Texts of which a service tells how near their elastic embeddings are to plain ones."""


class Encoder:
    """An encoder on this machine: `Encoder("minilm")`, `Encoder("vit-folder", tasks="tasks/")`.

    `model` is a packaged model's name or a folder. The other words are those of `EncoderSettings`.
    """

    name = "encoder"
    platform = "foreserve_encoder"
    idempotent = True
    streams = False

    def __init__(self, model: str | None = None, /, **words: Any) -> None:
        words = with_first(words, "model", model, "Encoder(...)", "the model is")
        where = f"Encoder({model!r})" if model else "Encoder(...)"
        self._setup(parse(words, EncoderSettings, where), where)

    @classmethod
    def from_settings(cls, settings: EncoderSettings, where: str) -> Encoder:
        """As an app file in YAML makes it; `where` is named in errors."""
        made = cls.__new__(cls)
        made._setup(settings, where)
        return made

    def _setup(self, settings: EncoderSettings, where: str) -> None:
        self.settings = settings
        self.where = where
        self._given_options = settings.policy_options
        self._folder: Path | None = None
        self._facts: EncoderFacts | None = None
        self._words: Words | None = None
        self.tasks: dict[str, TaskFacts] = {}
        self._timing = Timing(UNKNOWN)
        self._fidelity: dict[str, float] = {"plain": 1.0}
        self._planning: int | None = None
        self._factory = entry("engine", "elastic", f"{where}: engine").value

    # --- before it starts

    @property
    def policy(self) -> str:
        return POLICY

    def check(self) -> None:
        """Whether the model and its tasks are there and can be served. Reads no weights. Raises ConfigError."""
        self.prepare()

    @property
    def engine_name(self) -> str:
        """The engine that runs it, for what it needs to be installed."""
        return "elastic"

    def memory_bytes(self) -> int:
        """About what one replica will hold: its weights. Raises ConfigError when the model is not there."""
        self.prepare()
        assert self._folder is not None
        return sum(file.stat().st_size for file in self._folder.glob("*.safetensors"))

    def prepare(self, progress: Progress | None = None) -> None:
        """Read what the folders say, and the tokenizer. Raises ConfigError."""
        if self._facts is not None:
            return
        source = locate(self.settings.model, self.where)
        if source.form != "huggingface":
            raise ConfigError(f"{self.where}: an encoder is served from a Hugging Face folder; {source.path} is none")
        facts = read_folder(source.path)
        if self.settings.elastic and (facts.images or facts.cross):
            raise ConfigError(f"{self.where}: `elastic` is for embeddings of texts; a task brings its own settings")
        base = self._tasks_folder(source.path)
        if base is not None:
            self.tasks = read_tasks(base, facts)
        self._words = None if facts.images else Words(source.path, facts)
        self._folder, self._facts = source.path, facts

    def _tasks_folder(self, model: Path) -> Path | None:
        """The one that was named, or that the model brings along."""
        if self.settings.tasks is not None:
            return Path(self.settings.tasks).expanduser()
        return model / TASKS if (model / TASKS).is_dir() else None

    @property
    def facts(self) -> EncoderFacts:
        """What the model's folder says."""
        self.prepare()
        assert self._facts is not None
        return self._facts

    # --- the kind

    def engines(self) -> list[EngineSpec]:
        """How the workers make their engines, all alike. What the first has measured is told to the later ones."""
        settings, facts = self.settings, self.facts
        assert self._folder is not None
        options: dict[str, Any] = {
            "folder": str(self._folder),
            "facts": msgspec.to_builtins(facts),
            "settings": self._measured(),
            "size": settings.max_running,
            "threads": settings.threads,
            "weights": settings.weights,
            "measure_s": settings.measure_s,
        }
        if self.tasks:
            base = self._tasks_folder(self._folder)
            assert base is not None
            base = base.absolute()
            told = {name: (str(base / name), msgspec.to_builtins(task)) for name, task in self.tasks.items()}
            options["tasks"] = told
        if self._words is not None and settings.elastic:
            options["samples"] = [self._words.of_text(text, "samples") for text in SAMPLES]
        if self._timing.profile is not UNKNOWN:
            options["profile"] = msgspec.to_builtins(self._timing.profile)
        weights = shared_files(self._folder, settings.weights)
        options["shared_weights"] = [ref.name for ref in weights]
        spec = EngineSpec(
            factory=self._factory,
            options=options,
            weights=weights,
            python=settings.python,
            env=settings.env,
            start_limit_s=settings.start_limit_s,
            liveness_s=settings.liveness_s,
            imports=(self._factory.partition(":")[0],),
        )
        return [spec] * settings.bounds[1]

    def _measured(self) -> list[str]:
        """Every setting that something may be served with, from few tokens to many."""
        wanted = {"plain", *self.settings.elastic, *(each for task in self.tasks.values() for each in task.kept)}
        return sorted(wanted, key=lambda each: by_tokens(parse_setting(each)))

    def ready(self, info: EngineInfo) -> None:
        """Take over what its engine has measured."""
        self._fidelity = info.facts.get("fidelity", {"plain": 1.0})
        if "profile" in info.facts:
            profile = msgspec.convert(info.facts["profile"], Profile)
            self._timing = Timing(profile)
            if self.settings.policy in ("auto", POLICY):
                size, budget = self.settings.max_running, self._budget()
                options = {"size": size, "budget": budget, **self._given_options, "profile": info.facts["profile"]}
                self.settings = msgspec.structs.replace(self.settings, policy_options=options)

    def _budget(self) -> int:
        """Of the planner: found once, with the loop's own clock."""
        if self._planning is None:
            self._planning = calibrated(precise)
        return self._planning

    def price(self, request: Request) -> Price:
        payload: Encode = request.payload
        tokens = max(1, len(payload.ids))
        plans = (request.about or self.about(payload)).plans
        known = {each: worth for each, worth in plans.items() if each in self._timing.profile.seconds}
        length = self._timing.bucket(tokens)
        seconds = [self._timing.seconds(each, 1, length) for each in known] or [0.0]
        forecast = Forecast(
            input_tokens=len(payload.ids),
            output=_NO_TOKENS,
            most_tokens=0,
            seconds=max(seconds),
            least_seconds=min(seconds),
        )
        return Price(cost={"slots": 1.0, "tokens": float(tokens)}, forecast=forecast, plans=dict(plans))

    def settled(self, outcome: Outcome) -> None:
        """The policy learns by itself."""

    def decoder(self, work: Work) -> Reading:
        return Reading(work)

    def events_bound(self, payload: Encode) -> int:
        return 2

    # --- what the gateway asks

    def texts(self, texts: Sequence[str], param: str) -> list[Encode]:
        """One payload for each text. Raises BadRequest."""
        words = self._text_words(param)
        return [Encode(ids=words.of_text(text, f"{param}.{at}")) for at, text in enumerate(texts)]

    def token_ids(self, every: Sequence[list[int]], param: str) -> list[Encode]:
        """One payload for each list of token ids. Raises BadRequest."""
        words = self._text_words(param)
        return [Encode(ids=words.of_ids(ids, f"{param}.{at}")) for at, ids in enumerate(every)]

    def pairs(self, one: str, others: Sequence[str], param: str) -> list[Encode]:
        """One payload for each of `others`, read together with `one`. Raises BadRequest."""
        words = self._text_words(param)
        found = [words.of_pair(one, other, f"{param}.{at}") for at, other in enumerate(others)]
        return [Encode(ids=ids, types=types) for ids, types in found]

    def _text_words(self, param: str) -> Words:
        if self._words is None:
            raise BadRequest(f"{self.facts.name} reads images, no texts", param=param)
        return self._words

    def about(self, payload: Encode, terms: Terms = PLAINLY) -> Allowed:
        """What may serve this payload: the settings of its task, or, where asked for, those of embeddings.

        Raises BadRequest for a setting that it cannot be served with, or an accuracy that none reaches.
        """
        measured = self._timing.profile.seconds
        if payload.task:
            task = self.tasks[payload.task]
            plans = {each: task.accuracy[each] for each in task.kept}
            if terms.setting in task.accuracy and terms.setting in measured:
                plans[terms.setting] = task.accuracy[terms.setting]
        elif terms.elastic or terms.setting is not None or self.settings.elastic_always:
            plans = {each: self._fidelity.get(each, 0.0) for each in ("plain", *self.settings.elastic)}
        else:
            plans = {"plain": 1.0}
        return allowed(plans, terms)

    # --- as a model of the Open Inference Protocol

    def model_inputs(self) -> list[ModelTensor]:
        """A text or an image, and which task is meant where there are several."""
        return IMAGE_INPUTS if self.facts.images else TEXT_INPUTS

    def model_outputs(self) -> list[ModelTensor]:
        """Probabilities and the likeliest label of a task; the embedding without one."""
        return outputs(self.facts.width)

    def infer(self, tensors: Mapping[str, Tensor]) -> Encode:
        """A payload of these. Raises BadRequest naming the one that does not fit."""
        if self.facts.cross:
            raise BadRequest(f"{self.facts.name} is a cross-encoder: it scores pairs, see /v1/rerank")
        check_names(tensors, self.model_inputs())
        task = task_named(tensors, [*self.tasks])
        payload = image(tensors) if self.facts.images else self.texts([text(tensors)], "inputs.text")[0]
        return msgspec.structs.replace(payload, task=task)

    def inferred(self, events: Sequence[Any]) -> list[Output]:
        """The outputs of what was `Answered`."""
        if not events:
            raise Unavailable("the answer has no content")
        found: Answered = events[0]
        return answer(found.encoding.data, self.tasks[found.task].labels if found.task else None)

    def on_terms(self, payload: Encode, parameters: Mapping[str, Any]) -> Allowed:
        """What may serve it, by the parameters that are those of `Terms`."""
        return self.about(payload, terms_of(parameters))

    def told(self, events: Sequence[Any]) -> dict[str, Any]:
        """Under which setting it was made and how accurate that is expected to be."""
        found: list[Answered] = [*events]
        if not found:
            return {}
        return {"setting": found[0].encoding.setting, "expected_accuracy": round(found[0].encoding.expected, 4)}
