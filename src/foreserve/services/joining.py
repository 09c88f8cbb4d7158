"""Servers join and leave an upstream service that runs: who may be asked at all, who is fit, and how one goes.

What joins gets prompts and, with `api_key_env`, the servers' key. So an address is checked before anything is sent
there: its form, its host, what the host's name stands for. A name may stand for something else a moment later; who
must rule that out names networks of addresses in `may_join` and joins by address.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import os
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import cast

import aiohttp
import msgspec
from yarl import URL

from foreserve.engines.remote_server import Locked, RemoteServer, Unreachable, base_url
from foreserve.errors import BadRequest, EngineStartError, Forbidden, NotFound, Unavailable
from foreserve.fleet.replica import State
from foreserve.services.base import Service
from foreserve.services.upstream import Upstream

log = logging.getLogger(__name__)

READY_S = 30.0
"""How long a server that joins may take to become ready, its probe included."""

_RESOLVE_S = 5.0
_LONGEST_URL = 2048

Address = IPv4Address | IPv6Address


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server of a service. `running` is what we gave it, `others` what it has beside that (`None`: not known).

    `reason` says why it serves nothing: of one that is started anew, why the last start or server there was lost.
    """

    url: str
    replica: str
    state: str
    reason: str = ""
    running: int = 0
    others: int | None = None
    waiting: int | None = None
    kv_fraction: float | None = None


def servers(service: Service) -> list[ServerStatus]:
    """Those of a service, in the order in which they came; those that leave until they have gone."""
    found = []
    for seat in service.replicas.seats:
        url, replica = str(seat.spec.options.get("url", "")), seat.replica
        if replica is None:
            found.append(ServerStatus(url=url, replica="", state="unused"))
            continue
        load = replica.load if replica.state is not State.GONE else None
        found.append(
            ServerStatus(
                url=url,
                replica=replica.name,
                state="leaving" if seat.closing else replica.state.value,
                reason=replica.reason or seat.last_loss,
                running=len(replica.held),
                others=None if load is None else load.others,
                waiting=None if load is None else load.waiting,
                kv_fraction=None if load is None else load.kv_fraction,
            )
        )
    return found


async def join(service: Service, url: str) -> tuple[ServerStatus, bool]:
    """Take a running server in. How it stands, and whether it is new; one that is there already stays as it is.

    Raises BadRequest (the address is wrong, nothing answers there, it lacks the model, it fails its probe) and
    Forbidden (`may_join` has no such host), and Unavailable while the service ends. Nothing has changed then.
    """
    kind = cast(Upstream, service.kind)
    if kind.observer is not None:
        raise Forbidden("servers cannot join while only observing")
    address = await allowed(url, kind.settings.may_join)
    if (there := _there(service, address)) is not None:
        return there, False
    await _fit(address, kind)
    if (there := _there(service, address)) is not None:  # somebody else was quicker
        return there, False
    try:
        name = service.replicas.join(kind.engine(address))
    except EngineStartError as error:
        raise Unavailable(str(error)) from None
    replica = next(one for one in service.replicas.all if one.name == name)
    try:
        async with asyncio.timeout(READY_S):
            await replica.settled.wait()
    except TimeoutError:
        _forget(service, address)
        raise BadRequest(f"{address} was not ready within {READY_S:g} s", param="url") from None
    if replica.state is State.GONE:
        _forget(service, address)
        raise BadRequest(f"{address} does not join: {replica.reason}", param="url")
    if (status := _there(service, address)) is None:
        raise BadRequest(f"{address} was sent away before it was ready", param="url")
    log.info("%s: the server %s has joined", service.name, address)
    return status, True


async def expect(service: Service, urls: Sequence[str]) -> None:
    """Servers that were started for us: each is used as soon as it is up. What may not join is logged."""
    for url in urls:
        kind = cast(Upstream, service.kind)
        try:
            address = await allowed(url, kind.settings.may_join)
        except (BadRequest, Forbidden) as error:
            log.warning("%s: %s", service.name, error)
            continue
        most = kind.settings.bounds[1]
        if _there(service, address) is None:
            if sum(not seat.closing for seat in service.replicas.seats) >= most:
                log.warning("%s: %s is not used: there are %d servers, the most there may be", service.name, url, most)
                return
            service.replicas.join(kind.engine(address))


def leave(service: Service, url: str) -> ServerStatus:
    """Give a server nothing new and let it go when it has finished what it runs. Raises NotFound that lists them."""
    address = base_url(url)
    status = _there(service, address)
    if status is None:
        raise NotFound(
            f"{service.name!r} has no server {url[:200]!r}; there are: "
            f"{', '.join(one.url for one in servers(service) if one.state != 'leaving') or 'none'}",
            param="url",
        )
    service.replicas.leave(status.url)
    log.info("%s: the server %s leaves; it finishes %d requests", service.name, address, status.running)
    return msgspec.structs.replace(status, state="leaving")


def _there(service: Service, address: str) -> ServerStatus | None:
    return next((one for one in servers(service) if base_url(one.url) == address and one.state != "leaving"), None)


def _forget(service: Service, address: str) -> None:
    """It did not become ready: it is not tried again."""
    with contextlib.suppress(LookupError):
        service.replicas.leave(address)


async def _fit(address: str, kind: Upstream) -> None:
    """Ask the server whether it is well and has the model. Raises BadRequest."""
    settings = kind.settings
    headers = {}
    if settings.api_key_env is not None:
        headers["authorization"] = f"Bearer {os.environ.get(settings.api_key_env, '')}"
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            served = await RemoteServer(address, session, headers, settings.connect_s).served()
        except Locked as error:
            if settings.model is None or settings.api_key_env is not None:
                raise BadRequest(str(error), param="url") from None
            return
        except Unreachable as error:
            raise BadRequest(str(error), param="url") from None
    if served.make != "llamacpp" and served.models and settings.model not in (None, *served.models):
        raise BadRequest(f"{address} has no model {settings.model!r}; it has {', '.join(served.models)}", param="url")


# --- whose address may be asked


async def allowed(url: str, may_join: Sequence[str] | None) -> str:
    """The server's root address. Raises BadRequest for what is none, Forbidden for a host that may not join."""
    try:
        address = URL(base_url(url)) if len(url) <= _LONGEST_URL else URL()
    except ValueError:
        address = URL()
    host = (address.host or "").lower().rstrip(".")
    if address.scheme not in ("http", "https") or not host:
        raise BadRequest(f"{url[:200]!r} is no http:// or https:// address of a server", param="url")
    if address.user or address.password or address.query_string or address.fragment:
        raise BadRequest("the address must have no user, query or fragment; keys go into `api_key_env`", param="url")
    found = await _addresses(host, address.port or 80)
    named, networks = _rules(may_join or [])
    listed = any(fnmatch.fnmatchcase(host, pattern) for pattern in named)
    inside = bool(networks) and all(any(one in network for network in networks) for one in found)
    if may_join is not None and not listed and not inside:
        raise Forbidden(f"{host} may not join; valid: {', '.join(may_join) or 'none'} (`may_join` of the service)")
    for one in found:
        if (one.is_link_local or one.is_multicast or one.is_unspecified) and not inside:
            # Link-local addresses are, among other things, where clouds keep their machines' secrets.
            raise Forbidden(f"{host} stands for {one}, which may not join unless `may_join` has its network")
    return base_url(url)


def _rules(may_join: Sequence[str]) -> tuple[list[str], list[IPv4Network | IPv6Network]]:
    named, networks = [], []
    for rule in may_join:
        try:
            networks.append(ip_network(rule))
        except ValueError:
            named.append(rule.lower())
    return named, networks


async def _addresses(host: str, port: int) -> list[Address]:
    try:
        return [_plain(ip_address(host))]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise BadRequest(f"{host} cannot be found: {error or 'no answer'}", param="url") from None
    return [_plain(ip_address(str(entry[4][0]).partition("%")[0])) for entry in found]


def _plain(address: Address) -> Address:
    """IPv4 within IPv6 as what it is."""
    return getattr(address, "ipv4_mapped", None) or address
