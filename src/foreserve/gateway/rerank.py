"""`POST /v1/rerank`: documents in the order of how well they answer a query.

A cross-encoder reads the query with each document. Any other text encoder compares their embeddings.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.errors import BadRequest
from foreserve.gateway.bodies import decode_target
from foreserve.gateway.calls import Call
from foreserve.gateway.encoder_bodies import RerankBody, decode_rerank
from foreserve.gateway.encodings import encoded, matrix, prefix, served
from foreserve.gateway.schemas import describe
from foreserve.gateway.upstream import forwarded
from foreserve.services.encoder import Encoder

router = APIRouter(prefix="/v1", tags=["Encoders"])


@router.post("/rerank", **describe("Order documents by a query", body=RerankBody))
async def rerank(http: HttpRequest) -> Response:
    """The documents' places and scores, best first: cosines, or what a cross-encoder gives them."""
    call = await Call.read(http)
    if (reply := await forwarded(call)) is not None:
        return reply
    service = call.service(decode_target(call.raw).model, Encoder, "model", "model")
    asked = decode_rerank(call.raw)
    kind = cast(Encoder, service.kind)
    if kind.facts.images or (kind.facts.cross and len(kind.facts.labels) > 1):
        raise BadRequest(
            f"{kind.facts.name} cannot rank: it is no embedder and no cross-encoder of one score", param="model"
        )
    request = call.admitted(service, asked.foreserve)
    await call.known(service, request)
    texts = asked.texts()
    if kind.facts.cross:
        payloads = kind.pairs(asked.query, texts, "documents")
    else:
        before = prefix(kind, asked.foreserve)
        payloads = kind.texts([before + asked.query, *texts], "documents")
    encodings = await encoded(call, service, request, payloads, asked.foreserve)
    numbers = matrix(encodings)
    scores = numbers[:, 0] if kind.facts.cross else cosines(numbers)
    order = np.argsort(-scores, kind="stable")[: asked.top_n]
    results: list[dict[str, Any]] = [{"index": int(at), "relevance_score": float(scores[at])} for at in order]
    if asked.return_documents:
        results = [{**each, "document": {"text": texts[each["index"]]}} for each in results]
    tokens = sum(each.tokens for each in encodings)
    body = {
        "id": f"rerank-{call.id}",
        "object": "list",
        "model": service.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "foreserve": served(encodings),
    }
    return Response(msgspec.json.encode(body), media_type="application/json")


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Of the first with each of the others."""
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    found: np.ndarray = vectors[1:] @ vectors[0] / (lengths[1:] * lengths[0])
    return found
