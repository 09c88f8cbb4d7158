"""What runs on this machine and what it shares, for `foreserve top` and people."""

from __future__ import annotations

from typing import cast

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.gateway.schemas import describe
from foreserve.running import Running

router = APIRouter(tags=["Operations"])


@router.get("/v1/foreserve/runtime", **describe("Stages of services, memory of workers, shared weights and contexts"))
async def runtime(http: HttpRequest) -> Response:
    """A snapshot of now, or of at most a second ago."""
    status = await cast(Running, http.app.state.running).runtime.status()
    return Response(msgspec.json.encode(status), media_type="application/json")
