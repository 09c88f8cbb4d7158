"""OpenAI's API for our own language models: chat, text completions, the list of models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.clock import wall
from foreserve.core import Request
from foreserve.dispatch.stream import Stream
from foreserve.engines.generation import Generate
from foreserve.gateway import pipeline_models
from foreserve.gateway.bodies import (
    ChatBody,
    Common,
    CompletionBody,
    decode_chat,
    decode_completion,
    decode_target,
    messages_in_words,
)
from foreserve.gateway.calls import Call
from foreserve.gateway.disconnect import closing
from foreserve.gateway.openai_replies import Answer, ChatReplies, CompletionReplies, Replies, usage
from foreserve.gateway.schemas import describe
from foreserve.gateway.sse import EventStream, event, merged, raise_error
from foreserve.gateway.upstream import forwarded, models_of, upstream_of
from foreserve.services.base import Service
from foreserve.services.encoder import Encoder
from foreserve.services.llm import LLM
from foreserve.services.llm_decoder import Ended
from foreserve.services.llm_prompt import Sampling

router = APIRouter(prefix="/v1", tags=["OpenAI"])

DONE = event(b"[DONE]")

USUAL_TOKENS = 16
"""OpenAI's own bound for text completions that name none."""


@router.post("/chat/completions", **describe("Continue a conversation", body=ChatBody, streams=True))
async def chat(http: HttpRequest) -> Response:
    """Continue a conversation with a model of this server."""
    call = await Call.read(http)
    if (reply := await forwarded(call)) is not None:
        return reply
    name = decode_target(call.raw).model
    if (pipeline := pipeline_models.model_of(call.running, name)) is not None:
        return await pipeline_models.chat(call, pipeline, decode_chat(call.raw))
    service = call.service(name, LLM, "model", "model")
    asked = decode_chat(call.raw)
    sampling = _chat_sampling(asked)
    request = call.admitted(service, asked.foreserve)
    await call.known(service, request)
    kind = cast(LLM, service.kind)
    messages = messages_in_words(asked.messages)
    payload = await kind.chat(messages, sampling)
    about = await kind.about_chat(messages, payload, request.tenant)
    streams = _submit(service, request, [payload], [about], asked.n or 1)
    replies = ChatReplies(f"chatcmpl-{call.id}", int(wall()), service.name, _include_usage(asked), sampling.logprobs)
    return await _answer(call, service, asked, streams, replies)


@router.post("/completions", **describe("Continue a text", body=CompletionBody, streams=True))
async def completions(http: HttpRequest) -> Response:
    """Continue one or several texts, given as text or as token ids."""
    call = await Call.read(http)
    if (reply := await forwarded(call)) is not None:
        return reply
    service = call.service(decode_target(call.raw).model, LLM, "model", "model")
    asked = decode_completion(call.raw)
    kind = cast(LLM, service.kind)
    sampling = _sampling(asked, asked.max_tokens, asked.logprobs, None, usual_tokens=USUAL_TOKENS)
    sampling = msgspec.structs.replace(sampling, top_logprobs_param="logprobs")
    request = call.admitted(service, asked.foreserve)
    await call.known(service, request)
    payloads = await kind.complete(asked.prompts(), sampling)
    abouts = await kind.about_texts(asked.prompts(), payloads, request.tenant)
    streams = _submit(service, request, payloads, abouts, asked.n or 1)
    replies = CompletionReplies(f"cmpl-{call.id}", int(wall()), service.name, _include_usage(asked), sampling.logprobs)
    return await _answer(call, service, asked, streams, replies)


@router.get("/models", **describe("The models there are"))
async def models(http: HttpRequest) -> Response:
    """The language models and encoders of this server, those that other servers run for it included."""
    call = Call(http, b"")
    data = [_model(name, service, call.created) for name, service in models_of(call.running)]
    data += [_model(name, None, call.created) for name in pipeline_models.models(call.running)]
    return _json({"object": "list", "data": data})


@router.get("/models/{model:path}", **describe("One model", not_found=True))
async def model(http: HttpRequest, model: str) -> Response:
    """One language model or encoder of this server."""
    call = Call(http, b"")
    if pipeline_models.model_of(call.running, model) is not None:
        return _json(_model(model, None, call.created))
    served: Any = LLM | Encoder
    service = upstream_of(call.running, model) or call.service(model, served, "model", "model")
    return _json(_model(model, service, call.created))


def _model(name: str, service: Service | None, created: int) -> dict[str, Any]:
    described: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "foreserve"}
    if service is not None and service.info is not None and "context_tokens" in service.info.facts:
        described["max_model_len"] = service.info.facts["context_tokens"]
    return described


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


# --- from what was asked to what is submitted


def _chat_sampling(asked: ChatBody) -> Sampling:
    schema = None
    if asked.response_format is not None and asked.response_format.type != "text":
        wanted = asked.response_format.json_schema
        schema = msgspec.json.encode(wanted.schema if wanted else {"type": "object"}).decode()
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    if asked.max_completion_tokens is not None:
        words = "max_completion_tokens"
        return _sampling(asked, asked.max_completion_tokens, logprobs, schema, max_tokens_param=words)
    return _sampling(asked, asked.max_tokens, logprobs, schema)


def _sampling(
    asked: Common,
    max_tokens: int | None,
    logprobs: int | None,
    json_schema: str | None,
    usual_tokens: int | None = None,
    max_tokens_param: str = "max_tokens",
) -> Sampling:
    stop = asked.stop or ()
    return Sampling(
        max_tokens=max_tokens,
        max_tokens_param=max_tokens_param,
        usual_tokens=usual_tokens,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=asked.seed,
        logprobs=logprobs,
        frequency_penalty=asked.frequency_penalty or 0.0,
        presence_penalty=asked.presence_penalty or 0.0,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        ignore_eos=asked.ignore_eos or False,
        json_schema=json_schema,
    )


def _include_usage(asked: Common) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage is True


def _submit(
    service: Service, request: Request, payloads: Sequence[Generate], abouts: Sequence[object], n: int
) -> Sequence[Stream]:
    """One stream for each choice, those of one prompt next to each other. Several are children of one root request."""
    request = msgspec.structs.replace(request, payload=payloads[0], about=abouts[0])
    if len(payloads) == n == 1:
        return [service.submit(request)]
    every: list[object] = [_nth(payload, i) for payload in payloads for i in range(n)]
    return service.submit_group(request, every, [about for about in abouts for _ in range(n)]).streams


def _nth(payload: Generate, i: int) -> Generate:
    """The `i`th choice of one prompt draws by a seed of its own."""
    if payload.seed is None or i == 0:
        return payload
    seed = payload.seed + i
    return msgspec.structs.replace(payload, seed=seed if seed < 2**63 else seed - 2**64)


# --- from streams to the reply


async def _answer(call: Call, service: Service, asked: Common, streams: Sequence[Stream], replies: Replies) -> Response:
    n = asked.n or 1
    if asked.stream:
        parts = _parts(streams, replies, n)
        return EventStream(parts, streams, stall_s=service.settings.stall_s, last=DONE)
    async with closing(streams, call.http.receive):
        answers = await asyncio.gather(*(_whole(stream) for stream in streams))
    ends = [answer.ended for answer in answers if answer.ended is not None]
    return Response(replies.whole(answers, usage(ends, n)), media_type="application/json")


async def _whole(stream: Stream) -> Answer:
    """All of one choice. Raises what it ended with."""
    answer = Answer()
    async for events in stream:
        answer.take(events)
    raise_error(stream)
    return answer


async def _parts(streams: Sequence[Stream], replies: Replies, n: int) -> AsyncIterator[bytes]:
    """The events of a streamed reply, those of one turn of a choice together."""
    begun = [False] * len(streams)
    ends: list[Ended | None] = [None] * len(streams)
    async for index, events in merged(streams):
        answer = Answer()
        answer.take(events)
        ends[index] = answer.ended or ends[index]
        part = replies.part(index, answer)
        if not begun[index]:
            begun[index] = True
            part = replies.begin(index) + part
        yield part
    if last := replies.end(usage([end for end in ends if end is not None], n)):
        yield last
