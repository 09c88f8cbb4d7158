"""For people and probes: health, status, the status page and the list of paths."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, Response

from foreserve import __version__
from foreserve.core import OutcomeKind
from foreserve.gateway.calls import Call
from foreserve.gateway.pages import DOCS_PAGE, STATUS_PAGE
from foreserve.gateway.schemas import describe
from foreserve.running import Running
from foreserve.services.base import Service

router = APIRouter(tags=["Operations"])


@router.get("/health", include_in_schema=False)
@router.get("/health/live", **describe("Whether the server answers at all", open_to_all=True))
async def live() -> Response:
    """Answers as long as the event loop turns."""
    return _json({"status": "live"})


@router.get("/health/ready", **describe("Whether some service can serve", open_to_all=True, statuses=(503,)))
async def ready(http: HttpRequest) -> Response:
    """200 once all services have started and while some takes work, else 503; both say how each one stands.

    A service without a replica that starts one when a request comes takes work.
    """
    running = Call(http, b"").running
    services = {name: _readiness(service) for name, service in running.services.items()}
    is_ready = running.started and any(service.ready for service in running.services.values())
    body = {"status": "ready" if is_ready else "not ready", "services": services}
    return _json(body, 200 if is_ready else 503, {} if is_ready else {"retry-after": "1"})


@router.get("/v1/foreserve/status", **describe("Services, replicas, queues and outcomes now"))
async def status(http: HttpRequest) -> Response:
    """A snapshot of this server."""
    return _json(snapshot(Call(http, b"").running))


@router.get("/", include_in_schema=False)
async def status_page() -> Response:
    """The status page, which asks for the status every two seconds."""
    return HTMLResponse(STATUS_PAGE)


@router.get("/docs", include_in_schema=False)
async def docs_page() -> Response:
    """The list of paths, from `/openapi.json`; nothing is loaded from elsewhere."""
    return HTMLResponse(DOCS_PAGE)


def snapshot(running: Running) -> dict[str, Any]:
    """Everything that `/v1/foreserve/status` tells."""
    outcomes = {
        part: {kind.value: running.ledger.ended(kind, child=child) for kind in OutcomeKind}
        for part, child in (("requests", False), ("children", True))
    }
    return {
        "version": __version__,
        "services": [service.status() for service in running.services.values()],
        "pipelines": [pipeline.status() for pipeline in running.pipelines.values()],
        "outcomes": outcomes,
        "open": len(running.ledger.open),
    }


def _readiness(service: Service) -> dict[str, Any]:
    status = service.status()
    told: dict[str, Any] = {"ready": status.ready}
    if status.ready and not service.replicas.ready:
        told["on_demand"] = True  # it takes work, and starts a replica for it
    if not status.ready:
        told["reasons"] = [
            f"{replica.name}: {replica.state}{f', {replica.reason}' if replica.reason else ''}"
            for replica in status.replicas
        ] or ["it has no replicas"]
    return told


def _json(value: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), code, headers, media_type="application/json")
