"""What embeddings and ranking share: many inputs of one request encoded, and what served them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import numpy as np

from foreserve.core import Request
from foreserve.dispatch.stream import Stream
from foreserve.elastic.payload import Encode, Encoding
from foreserve.errors import BadRequest, EngineFailed
from foreserve.gateway.calls import Call
from foreserve.gateway.disconnect import closing
from foreserve.gateway.encoder_bodies import ElasticTerms
from foreserve.gateway.sse import raise_error
from foreserve.registry import choices
from foreserve.services.base import Service
from foreserve.services.encoder import Encoder
from foreserve.services.encoder_plans import Terms
from foreserve.services.encoder_reading import Answered


async def encoded(
    call: Call, service: Service, request: Request, payloads: Sequence[Encode], terms: ElasticTerms | None
) -> list[Encoding]:
    """One encoding for each payload, in order. Raises what the first that failed ended with, and BadRequest."""
    kind, asked = cast(Encoder, service.kind), terms or ElasticTerms()
    own = Terms(elastic=bool(asked.elastic), setting=asked.setting, min_accuracy=asked.min_accuracy or 0.0)
    abouts = [kind.about(payload, own) for payload in payloads]
    if len(payloads) == 1:
        streams: Sequence[Stream] = [
            service.submit(msgspec.structs.replace(request, payload=payloads[0], about=abouts[0]))
        ]
    else:
        streams = service.submit_group(request, payloads, abouts).streams
    async with closing(streams, call.http.receive):
        return await asyncio.gather(*(_one(stream) for stream in streams))


async def _one(stream: Stream) -> Encoding:
    found: list[Any] = []
    async for events in stream:
        found.extend(events)
    raise_error(stream)
    if not found:
        raise EngineFailed("the answer has no content")
    return cast(Answered, found[0]).encoding


def prefix(kind: Encoder, terms: ElasticTerms | None) -> str:
    """The words of the model's own that go before each text. Raises BadRequest for a prompt that it does not have."""
    prompts = kind.facts.prompts
    asked = terms.prompt if terms is not None else None
    if asked is None:
        return prompts.get(kind.facts.default_prompt or "", "")
    if asked not in prompts:
        raise BadRequest(
            f"the model has no prompt {asked[:64]!r}{choices(asked, list(prompts))}", param="foreserve.prompt"
        )
    return prompts[asked]


def matrix(encodings: Sequence[Encoding]) -> np.ndarray:
    """Their numbers, `[n, width]`."""
    return np.stack([np.frombuffer(each.data, "<f4") for each in encodings])


def served(encodings: Sequence[Encoding]) -> dict[str, Any]:
    """Under which settings they were made, and how accurate the least of them is expected to be."""
    return {
        "settings": dict(sorted(Counter(each.setting for each in encodings).items())),
        "expected_accuracy": round(min(each.expected for each in encodings), 4),
    }
