"""What one request of a pipeline asks of services: children of it, on its terms, counted in the same ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foreserve.clock import now
from foreserve.core import Request, add
from foreserve.dispatch.stream import Stream
from foreserve.errors import ConfigError, EngineFailed
from foreserve.pipelines.invoking import Invocation
from foreserve.pipelines.learned import Learned
from foreserve.registry import choices
from foreserve.services.base import Service

if TYPE_CHECKING:
    from foreserve.services.pipeline_expected import Promises

Ref = Any
"""How a stage names its service: the kind itself, as the app has it, or the name that the app gives it."""


def service_name(ref: Ref, kinds: Mapping[str, Any], where: str) -> str:
    """What the app calls a service. Raises ConfigError when it serves no such thing."""
    if isinstance(ref, str):
        if ref not in kinds:
            raise ConfigError(f"{where}: the app serves nothing called {ref!r}{choices(ref, kinds)}")
        return ref
    for name, kind in kinds.items():
        if kind is ref:
            return name
    what = getattr(ref, "__name__", type(ref).__name__)
    raise ConfigError(f"{where}: the app does not serve this {what}; name it there too, as in `App({what.lower()}=…)`")


class Calls:
    """The children of one request. `usage` is the sum of what they have used."""

    def __init__(self, services: Mapping[str, Service], request: Request, learned: Learned, promises: Promises) -> None:
        self.request = request
        self.usage: dict[str, float] = {}
        self.count = 0
        self._services = services
        self._learned = learned
        self._promises = promises
        self._kinds = {name: service.kind for name, service in services.items()}

    def service(self, ref: Ref) -> Service:
        """The service that a stage names. It is there: the app was checked for it."""
        return self._services[service_name(ref, self._kinds, f"pipeline {self.request.service!r}")]

    async def child(self, invocation: Invocation, service: Service) -> Request:
        """A request for one call of a stage, its payload still to be made, once it is known what may be asked.

        Raises what it has ended with where nothing can be asked. Those of one parent have its key in common
        (`affinity`), so that a placement may keep them together.
        """
        root = self.request
        self.count += 1
        self._promises.kept(root.id, service.name)
        place = "/".join(str(index) for _, index in invocation.ancestry[:-1])
        request = Request(
            id=f"{root.id}-{self.count}",
            service=service.name,
            payload=None,
            arrival=now(),
            deadline=root.deadline,
            utility=root.utility,
            tenant=root.tenant,
            parent=root.id,
            root_arrival=root.arrival,
            affinity=f"{root.id}/{place}",
            depth=invocation.depth,
            after_s=self._learned.after(invocation.step.name),
        )
        ended = await service.until_known(request)
        if ended is not None and (error := ended.error()) is not None:
            raise error
        return request

    def settle(self, invocation: Invocation, stream: Stream) -> None:
        """A child is over: count what it used, and raise what it ended with if it was not done."""
        outcome = stream.outcome
        if outcome is None:
            raise EngineFailed("a call ended without an outcome")
        self.usage = add(self.usage, outcome.usage)
        if invocation.span is not None:
            facts = {
                "service": outcome.service,
                "request": outcome.id,
                "replica": outcome.replica,
                "waited_s": None if outcome.started is None else outcome.started - outcome.arrival,
                **outcome.usage,
            }
            invocation.span.facts.update({name: fact for name, fact in facts.items() if fact is not None})
        if (error := outcome.error()) is not None:
            raise error
