"""Stages that are encoders of the app: a text's vector, or the label that a task gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
import numpy as np

from foreserve.core import Request
from foreserve.errors import ConfigError
from foreserve.pipelines.failing import Failed, checked
from foreserve.pipelines.invoking import Invocation
from foreserve.pipelines.stage import Takes
from foreserve.registry import choices
from foreserve.services.base import Service
from foreserve.services.encoder import Encoder
from foreserve.services.encoder_plans import Terms
from foreserve.services.encoder_reading import Answered
from foreserve.services.pipeline_stages import ServiceStage


class Encodes(ServiceStage):
    """An encoder's answer to a text. Made by `embed` and `classify`."""

    kind = Encoder

    def __init__(
        self, encoder: Encoder | str, task: str, terms: Terms, name: str, failed: Failed, attempts: int, gives: Any
    ) -> None:
        self.ref = encoder
        self.task = task
        self.terms = terms
        takes = (Takes("text", str, True),)
        super().__init__(self._answer, name, takes, gives, "task", failed=failed, attempts=attempts)
        self.__doc__ = f"The label that {task!r} gives a text." if task else "The vector of a text."

    def fits(self, kind: Any, where: str) -> None:
        """See `ServiceStage`."""
        encoder: Encoder = kind
        if encoder.facts.images or encoder.facts.cross:
            reads = "images" if encoder.facts.images else "pairs of texts"
            raise ConfigError(f"{where}: {encoder.facts.name} reads {reads}, and this stage has one text")
        if self.task and self.task not in encoder.tasks:
            raise ConfigError(f"{where}: no task {self.task!r}{choices(self.task, list(encoder.tasks))}")

    def asked(self, request: Request, service: Service, values: Mapping[str, Any]) -> Request:
        """See `ServiceStage`."""
        kind = cast(Encoder, service.kind)
        before = "" if self.task else kind.facts.prompts.get(kind.facts.default_prompt or "", "")
        payload = msgspec.structs.replace(kind.texts([before + values["text"]], "text")[0], task=self.task)
        return msgspec.structs.replace(request, payload=payload, about=kind.about(payload, self.terms))

    async def _answer(self, invocation: Invocation, *values: Any) -> Any:
        service, events = await self.answered(invocation, values)
        found: Answered = events[0]
        numbers: list[float] = np.frombuffer(found.encoding.data, "<f4").tolist()
        if not self.task:
            return numbers
        labels = cast(Encoder, service.kind).tasks[self.task].labels
        return labels[max(range(len(numbers)), key=numbers.__getitem__)]


def embed(
    encoder: Encoder | str,
    /,
    *,
    name: str = "embed",
    elastic: bool = False,
    setting: str | None = None,
    min_accuracy: float = 0.0,
    failed: Failed = "fail",
    attempts: int = 2,
) -> Encodes:
    """A stage: the vector of a text by `encoder`, an encoder of the app, as `/v1/embeddings` gives it.

    Exact unless `elastic`, `setting` or `min_accuracy` say otherwise; they are those of a request there. Texts that
    come together are encoded together. Raises ConfigError.
    """
    terms = Terms(elastic=elastic, setting=setting, min_accuracy=min_accuracy)
    return Encodes(*_checked(encoder, "", terms, name, failed), attempts, list[float])


def classify(
    encoder: Encoder | str,
    task: str,
    /,
    *,
    name: str = "",
    setting: str | None = None,
    min_accuracy: float = 0.0,
    failed: Failed = "fail",
    attempts: int = 2,
) -> Encodes:
    """A stage: the likeliest label of a text by `task`, one of those that `encoder` serves. Raises ConfigError."""
    if not task:
        raise ConfigError("classify(...): name a task of the encoder; `embed` gives a text's vector")
    terms = Terms(setting=setting, min_accuracy=min_accuracy)
    return Encodes(*_checked(encoder, task, terms, name or task, failed), attempts, str)


def _checked(encoder: Any, task: str, terms: Terms, name: str, failed: Failed) -> tuple[Any, str, Terms, str, Failed]:
    where = f"{'classify' if task else 'embed'} {name!r}"
    if not isinstance(encoder, (Encoder, str)):
        raise ConfigError(f"{where}: {type(encoder).__name__} is no encoder; valid: one of the app, or its name")
    return encoder, task, terms, name, checked(failed, where)
