"""Pipelines as models of OpenAI's API: the last user message goes in, one output comes back as the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi.responses import Response

from foreserve.clock import wall
from foreserve.errors import BadRequest, EngineFailed
from foreserve.gateway.bodies import ChatBody, messages_in_words
from foreserve.gateway.calls import Call
from foreserve.gateway.openai_replies import Answer, ChatReplies, usage
from foreserve.gateway.pipelines import checked_inputs, result_of
from foreserve.gateway.sse import EventStream, event
from foreserve.pipelines.events import Delta, Item, Retracted
from foreserve.pipelines.run import ONLY, Run
from foreserve.running import Running
from foreserve.services.llm_decoder import Ended, TextDelta
from foreserve.services.pipeline import ServedPipeline, told

CONVERSATION = "messages"
"""An input of this name is given the whole conversation; any other one, the last user message."""


def model_of(running: Running, name: str) -> ServedPipeline | None:
    """The pipeline that is served as a model of this name."""
    served = running.pipelines.get(name)
    return served if served is not None and served.settings.model else None


def models(running: Running) -> list[str]:
    """The names of pipelines that are models."""
    return [name for name, served in running.pipelines.items() if served.settings.model]


async def chat(call: Call, served: ServedPipeline, asked: ChatBody) -> Response:
    """A chat completion by a pipeline. Raises BadRequest for what a pipeline cannot be asked for."""
    for field in ("tools", "logprobs", "response_format", "temperature", "seed", "stop", "max_tokens"):
        if getattr(asked, field, None):
            raise BadRequest(
                f"`{field}` is set by the stages of pipeline {served.name!r}, not by a request", param=field
            )
    if (asked.n or 1) != 1:
        raise BadRequest(f"pipeline {served.name!r} gives one answer; `n` must be 1", param="n")
    inputs = checked_inputs(served, _inputs(served, messages_in_words(asked.messages)))
    request = call.request(served, asked.foreserve)
    output = served.settings.answer or next(iter(served.pipeline.plan.outputs))
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage is True
    replies = ChatReplies(f"chatcmpl-{call.id}", int(wall()), served.name, include_usage, None)
    run = served.submit(request, inputs, listens=bool(asked.stream))
    if asked.stream:
        parts = _parts(run, output, replies)
        return EventStream(parts, [run], stall_s=served.settings.stall_s, last=event(b"[DONE]"))
    result = await result_of(call, run)
    answer = Answer()
    answer.take([TextDelta(text=_as_text(result if output == ONLY else result[output])), _ended(run)])
    return Response(replies.whole([answer], usage([_ended(run)], 1)), media_type="application/json")


def _inputs(served: ServedPipeline, messages: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(served.pipeline.plan.inputs)
    if names == [CONVERSATION]:
        return {CONVERSATION: messages}
    if len(names) != 1:
        raise BadRequest(f"pipeline {served.name!r} takes {', '.join(names)}; call it at /v1/pipelines/{served.name}")
    said = [message["content"] for message in messages if message["role"] == "user"]
    if not said:
        raise BadRequest("there is no user message, which is what goes into the pipeline", param="messages")
    return {names[0]: said[-1]}


async def _parts(run: Run, output: str, replies: ChatReplies) -> AsyncIterator[bytes]:
    begun = False
    while (events := await run.events.next()) is not None:
        answer = Answer()
        for each in events:
            if each.name != output:
                continue
            if isinstance(each, Retracted) and begun:
                raise EngineFailed("a replica was lost, and what was sent of the answer would be made again")
            if isinstance(each, Delta) and not each.path:
                answer.take([TextDelta(text=each.text)])
            elif isinstance(each, Item):
                answer.take([TextDelta(text=_as_text(each.value))])
        if answer.texts:
            yield (b"" if begun else replies.begin(0)) + replies.part(0, answer)
            begun = True
    if run.error is not None:
        raise told(run.error) from run.error
    answer = Answer()
    answer.take([_ended(run)])
    yield (b"" if begun else replies.begin(0)) + replies.part(0, answer) + replies.end(usage([_ended(run)], 1))


def _ended(run: Run) -> Ended:
    used = run.services.usage
    return Ended(
        reason="stop",
        prompt_tokens=int(used.get("prompt_tokens", 0)),
        output_tokens=int(used.get("output_tokens", 0)),
    )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
