"""What every handler needs of one HTTP request: its id, who asks, which service it is for, on what terms."""

from __future__ import annotations

from typing import Any, cast

from fastapi import Request as HttpRequest

from foreserve.clock import now
from foreserve.core import Request
from foreserve.gateway.bodies import TermsBody
from foreserve.gateway.errors import no_such
from foreserve.gateway.terms import terms
from foreserve.running import Running
from foreserve.services.base import Service
from foreserve.services.pipeline import ServedPipeline
from foreserve.settings import ApiKey

ID = "foreserve.id"
KEY = "foreserve.key"
GONE = "foreserve.gone"
"""Where, in the ASGI scope, the edge (see `edge`) keeps the request's id and API key, and a stream that was left."""


class Call:
    """One HTTP request on its way to a service. It arrives when its body has."""

    def __init__(self, http: HttpRequest, raw: bytes) -> None:
        self.http = http
        self.raw = raw
        self.arrival = now()
        self.id: str = http.scope[ID]

    @classmethod
    async def read(cls, http: HttpRequest) -> Call:
        """Take the body in. Raises TooLarge, ClientDisconnect."""
        return cls(http, await http.body())

    @property
    def running(self) -> Running:
        """The app that is served."""
        return cast(Running, self.http.app.state.running)

    @property
    def created(self) -> int:
        """When this server began, in seconds of the epoch."""
        return int(self.http.app.state.created)

    def service(self, name: str, kind: type[Any], what: str, param: str | None) -> Service:
        """The service of this name and kind. Raises NotFound that lists those there are."""
        service = self.running.services.get(name)
        if service is None or not isinstance(service.kind, kind):
            there_are = [n for n, s in self.running.services.items() if isinstance(s.kind, kind)]
            raise no_such(what, name, there_are, param)
        return service

    def pipeline(self, name: str) -> ServedPipeline:
        """The pipeline of this name. Raises NotFound that lists those there are."""
        pipeline = self.running.pipelines.get(name)
        if pipeline is None:
            raise no_such("pipeline", name, list(self.running.pipelines), None)
        return pipeline

    def request(self, service: Service | ServedPipeline, body_terms: TermsBody | None) -> Request:
        """A request on its terms, its payload still to be made. Raises BadRequest for terms that are wrong."""
        key: ApiKey | None = self.http.scope.get(KEY)
        agreed = terms(self.http.headers, body_terms, key, service.settings)
        return Request(
            id=self.id,
            service=service.name,
            payload=None,
            arrival=self.arrival,
            deadline=None if agreed.deadline_s is None else self.arrival + agreed.deadline_s,
            utility=agreed.utility,
            tenant=agreed.tenant,
        )

    def admitted(self, service: Service, body_terms: TermsBody | None) -> Request:
        """As `request`; raises what it ended with (Shed, Unavailable, Expired) when it is turned away already."""
        request = self.request(service, body_terms)
        refused = service.turn_away(request)
        if refused is not None and (error := refused.error()) is not None:
            raise error
        return request

    async def known(self, service: Service, request: Request) -> None:
        """Wait until it is known what may be asked of a service: until the first start, where it has no replica yet.

        Raises what the request ended with (Unavailable, Expired) where none could be had.
        """
        ended = await service.until_known(request)
        if ended is not None and (error := ended.error()) is not None:
            raise error
