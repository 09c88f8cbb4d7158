"""`POST /v1/embeddings`, as OpenAI has it: vectors of texts, exact unless somebody asks otherwise."""

from __future__ import annotations

import base64
from typing import Any, cast

import msgspec
import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.errors import BadRequest
from foreserve.gateway.bodies import decode_target
from foreserve.gateway.calls import Call
from foreserve.gateway.encoder_bodies import EmbeddingsBody, decode_embeddings
from foreserve.gateway.encodings import encoded, matrix, prefix, served
from foreserve.gateway.schemas import describe
from foreserve.gateway.upstream import forwarded
from foreserve.services.encoder import Encoder

router = APIRouter(prefix="/v1", tags=["Encoders"])


@router.post("/embeddings", **describe("Embed texts", body=EmbeddingsBody))
async def embeddings(http: HttpRequest) -> Response:
    """One vector for each input. Beside what OpenAI tells, `foreserve` names the token settings that made them."""
    call = await Call.read(http)
    if (reply := await forwarded(call)) is not None:
        return reply
    service = call.service(decode_target(call.raw).model, Encoder, "model", "model")
    asked = decode_embeddings(call.raw)
    kind = cast(Encoder, service.kind)
    _check(kind, asked)
    request = call.admitted(service, asked.foreserve)
    await call.known(service, request)
    texts, ids = asked.inputs()
    before = prefix(kind, asked.foreserve)
    payloads = kind.texts([before + text for text in texts], "input") if texts else kind.token_ids(ids, "input")
    encodings = await encoded(call, service, request, payloads, asked.foreserve)
    vectors = shortened(matrix(encodings), asked.dimensions, normalised=kind.facts.normalised)
    tokens = sum(each.tokens for each in encodings)
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": _told(vector, asked.encoding_format)}
            for at, vector in enumerate(vectors)
        ],
        "model": service.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "foreserve": served(encodings),
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


def _check(kind: Encoder, asked: EmbeddingsBody) -> None:
    """Raises BadRequest for what this model cannot give."""
    facts = kind.facts
    if facts.cross:
        raise BadRequest(f"{facts.name} is a cross-encoder: it scores pairs, see /v1/rerank", param="model")
    if facts.images:
        raise BadRequest(f"{facts.name} reads images, see /v2/models/NAME/infer", param="model")
    if asked.dimensions is not None and asked.dimensions > facts.width:
        raise BadRequest(f"`dimensions` is {asked.dimensions}; the model has {facts.width}", param="dimensions")


def shortened(vectors: np.ndarray, dimensions: int | None, *, normalised: bool) -> np.ndarray:
    """The first `dimensions` numbers of each, brought back to length 1 where the model's own are `normalised`."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    if not normalised:
        return cut
    found: np.ndarray = cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
    return found


def _told(vector: np.ndarray, encoding: str | None) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
