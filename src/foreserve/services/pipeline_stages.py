"""Stages that are services of the app: a language model's answer as live text, a function's result or its items."""

from __future__ import annotations

import asyncio
import inspect
import string
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from foreserve.calling import Call, Items
from foreserve.core import Request
from foreserve.errors import ConfigError, EngineFailed
from foreserve.pipelines.failing import Failed, checked
from foreserve.pipelines.flow import call
from foreserve.pipelines.invoking import Invocation
from foreserve.pipelines.shapes import hints_of, inner, is_stream, stream_of
from foreserve.pipelines.stage import Stage, Takes
from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text
from foreserve.registry import choices
from foreserve.services.base import Service
from foreserve.services.function import Function
from foreserve.services.function_target import called
from foreserve.services.llm import LLM
from foreserve.services.llm_decoder import TextDelta
from foreserve.services.llm_prompt import Sampling
from foreserve.services.pipeline_calls import Calls, Ref

FIELD = str | int | float
"""What a field of a prompt takes."""


class ServiceStage(Stage):
    """A stage that the service `ref` carries out, through its dispatcher, as a child of the request."""

    in_context = True
    ref: Ref
    kind: type[Any]
    """What sort of service it must be."""

    def fits(self, kind: Any, where: str) -> None:
        """Whether the service, once it is prepared, does what this stage asks. Raises ConfigError."""

    def asked(self, request: Request, service: Service, values: Mapping[str, Any]) -> Request:
        """A call of the service, its payload made of the arguments by name; of stages with one answer. BadRequest."""
        raise NotImplementedError

    async def answered(self, invocation: Invocation, values: Sequence[Any]) -> tuple[Service, list[Any]]:
        """The service and what it answers to one call, at least one event. Raises what the call ended with."""
        calls: Calls = invocation.run.services
        service = calls.service(self.ref)
        request = await calls.child(invocation, service)
        stream = service.submit(self.asked(request, service, named(invocation, values)))
        try:
            events = [event async for every in stream for event in every]
        finally:
            stream.close("the pipeline wants no more of it")
        calls.settle(invocation, stream)
        if not events:
            raise EngineFailed(f"stage {self.name!r}: the answer has no content")
        return service, events


def named(invocation: Invocation, values: Sequence[Any]) -> dict[str, Any]:
    """Arguments by name: a stage may be given constants by place or name, and its step tells which value is which."""
    return {argument.name: value for argument, value in zip(invocation.step.arguments, values, strict=True)}


class Ask(ServiceStage):
    """A language model's answer to a prompt, as live text. Made by `ask`."""

    kind = LLM

    def __init__(
        self, model: LLM | str, template: str, system: str, name: str, failed: Failed, attempts: int, sampling: Sampling
    ) -> None:
        self.ref = model
        self.template = template
        self.system = system
        self.sampling = sampling
        fields = tuple(Takes(field, FIELD, True) for field in _fields(template, system, f"ask {name!r}"))
        super().__init__(self._answer, name, fields, Text, "items", failed=failed, attempts=attempts)
        self.__doc__ = f"A language model's answer to {template!r}."

    async def _answer(self, invocation: Invocation, *values: Any) -> AsyncIterator[str]:
        calls: Calls = invocation.run.services
        service = calls.service(self.ref)
        kind = cast(LLM, service.kind)
        fields = named(invocation, values)
        messages = [{"role": "user", "content": self.template.format(**fields)}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system.format(**fields)})
        request = await calls.child(invocation, service)
        payload = await kind.chat(messages, self.sampling)
        about = await kind.about_chat(messages, payload, request.tenant)
        stream = service.submit(msgspec.structs.replace(request, payload=payload, about=about))
        try:
            async for events in stream:
                if text := "".join(event.text for event in events if isinstance(event, TextDelta)):
                    yield text
        finally:
            stream.close("the pipeline wants no more of it")
        calls.settle(invocation, stream)


def ask(
    model: LLM | str,
    template: str = "{prompt}",
    /,
    *,
    system: str = "",
    name: str = "ask",
    failed: Failed = "fail",
    attempts: int = 2,
    **sampling: Any,
) -> Ask:
    """A stage: what `model`, a service of the app, answers to a prompt, as live text.

    `template` is the user's message. Its fields, such as `{claim}`, are the stage's parameters, as are those of
    `system`; what stands before the first field is the same for all and is computed once where prefixes are cached.
    `sampling` are the words of `Sampling`: `max_tokens=64`, `temperature=0.0`, `stop=("\\n\\n",)`. Raises ConfigError.
    """
    where = f"ask {name!r}"
    valid = msgspec.structs.fields(Sampling)
    for word in sampling:
        if word not in {field.name for field in valid}:
            raise ConfigError(f"{where}: unknown word {word!r}{choices(word, [field.name for field in valid])}")
    if not isinstance(model, (LLM, str)):
        raise ConfigError(f"{where}: {type(model).__name__} is no model; valid: an LLM of the app, or its name")
    try:
        wanted = msgspec.convert(sampling, Sampling)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    return Ask(model, template, system, name, checked(failed, where), attempts, wanted)


def _fields(template: str, system: str, where: str) -> list[str]:
    found: dict[str, None] = {}
    for text in (system, template):
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"{where}: the prompt cannot be read: {error}; write {{{{ for a brace") from None
        for _, field, _, _ in parts:
            if field is not None and not field.isidentifier():
                raise ConfigError(f"{where}: `{{{field}}}` is no name; valid: a Python word, as in {{question}}")
            if field is not None:
                found[field] = None
    if not found:
        raise ConfigError(f"{where}: the prompt has no field; write one where the input goes, as in {{question}}")
    return list(found)


class CallFunction(ServiceStage):
    """A function of the app: its result, or the items of a generator as a stream. Made when it is called with flows."""

    kind = Function

    def __init__(self, function: Function, name: str, takes: tuple[Takes, ...], gives: Any) -> None:
        self.ref = function
        many = is_stream(gives)
        super().__init__(
            self._items if many else self._result,
            name,
            takes,
            gives,
            "items" if many else "task",
            attempts=2 if function.idempotent else 1,
        )

    async def _items(self, invocation: Invocation, *values: Any) -> AsyncIterator[Any]:
        calls: Calls = invocation.run.services
        service = calls.service(self.ref)
        args = named(invocation, values)
        streams = {name: value for name, value in args.items() if isinstance(value, Stream)}
        firsts = await first_items(streams)
        request = await calls.child(invocation, service)
        plain = {name: value for name, value in args.items() if name not in streams}
        payload = cast(Function, service.kind).checked(Call(args=plain, fed=tuple(streams)))
        stream = service.submit(msgspec.structs.replace(request, payload=payload))
        feeding = [
            asyncio.ensure_future(feed(service, request.id, name, firsts[name], items))
            for name, items in streams.items()
        ]
        item = inner(self.gives) if is_stream(self.gives) else self.gives
        try:
            async for events in stream:
                for event in events:
                    yield _typed(event, item)
        finally:
            for task in feeding:
                task.cancel()
            stream.close("the pipeline wants no more of it")
        calls.settle(invocation, stream)

    async def _result(self, invocation: Invocation, *values: Any) -> Any:
        found = [item async for item in self._items(invocation, *values)]
        return found[0] if found else None


def _typed(value: Any, kind: Any) -> Any:
    """What came back as plain values, as what the function is said to return."""
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind)):
        return value
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, TypeError):
        return value


async def first_items(streams: Mapping[str, Stream[Any]]) -> dict[str, list[Any]]:
    """Wait until some stream has an item, or all are over: a call that waits for its input shall hold no slot."""
    firsts: dict[str, list[Any]] = {name: [] for name in streams}
    if not streams:
        return firsts
    waiting = {asyncio.ensure_future(_one(stream)): name for name, stream in streams.items()}
    try:
        while waiting and not any(firsts.values()):
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                firsts[waiting.pop(each)] += each.result()
    finally:
        for each in waiting:
            each.cancel()
    return firsts


async def _one(stream: Stream[Any]) -> list[Any]:
    try:
        return [await anext(stream)]
    except StopAsyncIteration:
        return []


async def feed(service: Service, request_id: str, name: str, firsts: list[Any], stream: Stream[Any]) -> None:
    """Hand a stream's items to a running call, those that are there together."""
    if firsts:
        service.feed(request_id, Items(name=name, items=firsts))
    async for item in stream:
        service.feed(request_id, Items(name=name, items=[item]))
    service.feed(request_id, Items(name=name, last=True), last=True)


def function_step(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What calling a function with flows is: a step of the pipeline. Raises ConfigError for what does not fit."""
    code = function.served_code
    name = function.settings.target.rpartition(":")[2]
    if code is None:  # named, not decorated: its types are known to its worker alone
        takes = tuple(Takes(each, Any, True) for each in kwargs)
        gives: Any = Any
    else:
        hints = function.hints
        takes = tuple(Takes(each.name, hints.get(each.name, Any), each.required) for each in function.takes or ())
        run = called(code)
        for each in takes:
            if each.kind is Text:
                raise ConfigError(
                    f"function {name!r}: `{each.name}` takes Text, which does not leave this process; take str"
                )
            if is_stream(each.kind) and not (inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run)):
                raise ConfigError(f"function {name!r}: `{each.name}` takes a stream; write `async def` to read it")
        gives = hints_of(run, f"function {name!r}").get("return", Any)
        if function.streams:
            gives = stream_of(inner(gives) if gives is not Any else Any)
        elif function.settings.batch > 1 and gives is not Any:
            gives = inner(gives)
    return call(CallFunction(function, name, takes, gives), args, kwargs)
