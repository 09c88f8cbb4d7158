"""Servers of upstream models join and leave while requests run.

Whoever may add a server can read every prompt that is then sent to it: these paths need an API key with `admin` or,
where no keys are in use, a program on this machine (`server.admin_from`).
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any, cast

import msgspec
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from foreserve.errors import BadRequest, Forbidden
from foreserve.gateway.calls import KEY, Call
from foreserve.gateway.decoding import Decoder
from foreserve.running import Running
from foreserve.services.base import Service
from foreserve.services.joining import join, leave, servers
from foreserve.services.upstream import Upstream
from foreserve.settings import ApiKey

router = APIRouter(tags=["Operations"])

PATH = "/v1/foreserve/services/{name:path}/servers"

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""Headers of proxies: behind one, the address that we see says nothing of who asks."""


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a join or a leave."""

    url: str


_body = Decoder(Address)


# Not on the OpenAPI page: what tries the paths there one by one would send servers away.
@router.get("/v1/foreserve/servers", include_in_schema=False)
async def every(http: HttpRequest) -> Response:
    """The servers of all upstream services, by service."""
    running = cast(Running, http.app.state.running)
    found = {name: servers(one) for name, one in running.services.items() if isinstance(one.kind, Upstream)}
    return _json({"services": found})


@router.get(PATH, include_in_schema=False)
async def listed(http: HttpRequest, name: str) -> Response:
    """The servers of one service."""
    return _json({"servers": servers(_service(http, name))})


@router.post(PATH, include_in_schema=False)
async def add(http: HttpRequest, name: str) -> Response:
    """Take in the server at `url`: 201 when it has joined, 200 when it was there."""
    administers(http)
    service, address = _service(http, name), await _address(http)
    status, new = await join(service, address.url)
    return _json(status, 201 if new else 200)


@router.delete(PATH, include_in_schema=False)
async def remove(http: HttpRequest, name: str) -> Response:
    """Let the server at `url` go, once it has finished what it runs: 202."""
    administers(http)
    service = _service(http, name)
    given = http.query_params.get("url")
    address = Address(given) if given is not None else await _address(http)
    return _json(leave(service, address.url), 202)


def administers(http: HttpRequest) -> None:
    """Raises Forbidden when who asks may not let servers join and leave."""
    key: ApiKey | None = http.scope.get(KEY)
    settings = cast(Running, http.app.state.running).settings.server
    if settings.api_keys:
        if key is None or not key.admin:
            raise Forbidden("this API key may not let servers join or leave; one with `admin: true` may")
        return
    client = http.client.host if http.client is not None else ""
    try:
        at = ip_address(client)
        near = any(at in ip_network(network) for network in settings.admin_from)
    except ValueError:
        near = False
    if not near or any(name in http.headers for name in _FORWARDED):
        raise Forbidden(
            "without API keys servers join and leave by programs on this machine alone; give a key `admin: true`, or "
            "name networks in `server.admin_from`"
        )
    # A page in a browser here could send it too, by our own address or by a name that it makes stand for it.
    if "origin" in http.headers or "sec-fetch-site" in http.headers or not _is_address(http.headers.get("host", "")):
        raise Forbidden("without API keys this is not for browsers, and is asked for by address or localhost")


def _is_address(host: str) -> bool:
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    try:
        ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True


async def _address(http: HttpRequest) -> Address:
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadRequest('send JSON as application/json, such as {"url": "http://gpu3:8000"}')
    return _body.decode(await http.body())


def _service(http: HttpRequest, name: str) -> Service:
    return Call(http, b"").service(name, Upstream, "upstream service", None)


def _json(value: Any, code: int = 200) -> Response:
    return Response(msgspec.json.encode(value), code, media_type="application/json")
