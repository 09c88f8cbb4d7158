"""Who asks, and on what terms: API keys, deadline, utility and tenant of a request.

Terms come from the body (`foreserve: {...}`), else from the headers `x-slo-ms`, `x-utility`, `x-tenant`, else from the
API key, else from the service. With keys in use the tenant and the highest utility belong to the key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from foreserve.errors import BadRequest, Unauthorized
from foreserve.gateway.bodies import TermsBody
from foreserve.settings import TENANT, TENANT_WORDS, ApiKey

MAX_SLO_MS = 86_400_000.0
MAX_UTILITY = 1e9


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of one request. `deadline_s` is seconds from its arrival."""

    deadline_s: float | None
    utility: float
    tenant: str


class UsualTerms(Protocol):
    """The settings of whatever is asked, as far as they are terms."""

    @property
    def deadline_s(self) -> float | None: ...
    @property
    def utility(self) -> float: ...


class Keys:
    """The API keys in use; none at all lets everybody in."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = [(key.key.encode(), key) for key in keys]

    def check(self, authorization: str | None, method: str) -> ApiKey | None:
        """The key that `Authorization` shows, `None` when no keys are in use. Raises Unauthorized.

        `Bearer` is for programs. `Basic` with the key as password lets a person's browser open the pages; it is taken
        for GET alone, because a browser adds it to what other sites make it send.
        """
        if not self._keys:
            return None
        if authorization is None:
            raise Unauthorized("an API key is needed: send `Authorization: Bearer KEY`")
        shown = _shown(authorization, method)
        found: ApiKey | None = None
        for secret, key in self._keys:
            # Every key is compared, so that the time taken says nothing of which one was near.
            if hmac.compare_digest(shown, secret):
                found = key
        if found is None:
            raise Unauthorized("this API key is not known here")
        return found


def _shown(authorization: str, method: str) -> bytes:
    scheme, _, value = authorization.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value.encode("utf-8", "surrogateescape")
    if scheme.lower() == "basic" and method in ("GET", "HEAD"):
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            pass
    raise Unauthorized("`Authorization` is not understood; send `Authorization: Bearer KEY`")


def terms(headers: Mapping[str, str], body: TermsBody | None, key: ApiKey | None, settings: UsualTerms) -> Terms:
    """The terms of a request to a service with `settings`. Raises BadRequest naming the header or the field."""
    slo_ms, slo_place = _number(headers, "x-slo-ms", MAX_SLO_MS), "x-slo-ms"
    utility, utility_place = _number(headers, "x-utility", MAX_UTILITY), "x-utility"
    tenant, tenant_place = _tenant(headers), "x-tenant"
    if body is not None:
        if body.slo_ms is not None:
            slo_ms, slo_place = body.slo_ms, "foreserve.slo_ms"
        if body.utility is not None:
            utility, utility_place = body.utility, "foreserve.utility"
        if body.tenant is not None:
            tenant, tenant_place = body.tenant, "foreserve.tenant"
    if slo_ms == 0:
        raise BadRequest(f"`{slo_place}` is 0; it must be above 0", param=slo_place)
    deadline_s = slo_ms / 1000 if slo_ms is not None else settings.deadline_s
    if key is None:
        return Terms(
            deadline_s=deadline_s,
            utility=settings.utility if utility is None else utility,
            tenant=tenant or "default",
        )
    if tenant is not None and tenant != key.tenant:
        raise BadRequest(f"`{tenant_place}` is {tenant!r}; this API key is {key.tenant!r}'s", param=tenant_place)
    if utility is not None and utility > key.max_utility:
        raise BadRequest(
            f"`{utility_place}` is {utility:g}; this API key may claim at most {key.max_utility:g}", param=utility_place
        )
    if slo_ms is None and key.deadline_s is not None:
        deadline_s = key.deadline_s
    return Terms(
        deadline_s=deadline_s,
        utility=min(settings.utility, key.max_utility) if utility is None else utility,
        tenant=key.tenant,
    )


def _number(headers: Mapping[str, str], name: str, most: float) -> float | None:
    given = headers.get(name)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise BadRequest(f"`{name}` is {given[:64]!r}; it must be a number from 0 to {most:g}", param=name)
    return value


def _tenant(headers: Mapping[str, str]) -> str | None:
    given = headers.get("x-tenant")
    if given is not None and not TENANT.fullmatch(given):
        raise BadRequest(f"`x-tenant` is {given[:64]!r}; valid: {TENANT_WORDS}", param="x-tenant")
    return given
