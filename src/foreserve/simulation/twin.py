"""A service as the simulator runs it: settings, price, policy and foresight are its own, its engine is simulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import msgspec

from foreserve.chosen import placement_name
from foreserve.core import Chunk, EngineInfo, EngineSpec, Outcome, Price, Request, Work
from foreserve.engines.generation import Count, Sized
from foreserve.engines.profile import EngineProfile
from foreserve.errors import ConfigError
from foreserve.foresight.length import Asked
from foreserve.ports import Decoded, Resumed
from foreserve.services.foreseeing import Foreseer
from foreserve.services.foreseen import Foreseen, tokens_cost
from foreserve.services.llm import CONTINUOUS_POLICY, LLM, STATIC_POLICY
from foreserve.services.prefixes import of_hashes, wanted
from foreserve.services.served import Progress, Served
from foreserve.services.upstream import Upstream
from foreserve.simulation.oracle import Oracle
from foreserve.traces.row import TraceRow

ENGINE = "foreserve.engines.simulated:SimulatedEngine"


def can_be_simulated(kind: Served) -> TypeGuard[LLM | Upstream]:
    """Whether a service can have a twin."""
    return isinstance(kind, LLM | Upstream)


class Twin:
    """The twin of a language-model service, local or upstream. Raises ConfigError for services of other kinds."""

    def __init__(self, name: str, kind: Served, profile: EngineProfile, oracle: Oracle) -> None:
        if not can_be_simulated(kind):
            raise ConfigError(f"service {name!r} is a {kind.name}; what can be simulated: llm, upstream")
        self.name = kind.name
        self.idempotent = kind.idempotent
        self.settings = kind.settings
        self.profile = profile
        self.foreseer = Foreseer(kind.foreseer.settings, words=False)
        self.distort: Callable[[Foreseen], Foreseen] | None = None
        """What becomes of all that is foreseen, where predictions are made to be wrong."""
        self.heard_first: Callable[[str], None] | None = None
        """Told the id of each request whose first tokens have come, where somebody wants to know."""
        self._replicas = len(kind.settings.urls) if isinstance(kind, Upstream) else kind.settings.bounds[1]
        self._oracle = oracle
        self._static = profile.batching == "static"
        self._capacity: dict[str, float] | None = None
        """What its engines say that they may hold, where the profile does not tell it."""
        if isinstance(kind, Upstream) and not self._static:
            # As the remote engine: the gateway bounds what it sends by its own settings, and sees no server's KV cache.
            self._capacity = {"slots": kind.engines()[0].options["max_running"]}

    @property
    def policy(self) -> str:
        """See `Kind`."""
        return STATIC_POLICY if self._static else CONTINUOUS_POLICY

    def memory_bytes(self) -> int:
        """What one replica holds, as the profile tells it, for services that share a machine."""
        return self.profile.host_bytes

    @property
    def placement(self) -> str:
        """See `LLM.placement`."""
        return "least_requests" if self._static else "anticipated"

    def prepare(self, progress: Progress | None) -> None:
        """Nothing is needed."""

    def engines(self) -> list[EngineSpec]:
        """See `Kind`."""
        settings = self.settings
        spec = EngineSpec(
            factory=ENGINE,
            options={"profile": self.profile, "lengths": self._oracle, "capacity": self._capacity},
            start_limit_s=settings.start_limit_s,
            liveness_s=settings.liveness_s,
        )
        return [spec] * self._replicas

    # --- from a row of a trace to a request

    def payload(self, row: TraceRow, block_tokens: int) -> Sized:
        """What is asked of the engine: as a client would, not knowing how long the answer will be."""
        room = max(1, self.profile.context_tokens - row.input_tokens)
        most = min(row.most_tokens, room) if row.most_tokens is not None else room
        return Sized(prompt_tokens=row.input_tokens, max_tokens=most, prefix=row.prefix, block_tokens=block_tokens)

    async def about(self, rows: list[TraceRow], payloads: list[Sized]) -> list[Foreseen]:
        """What is foreseen of each, many at once. A trace has no text: its `app` stands for the instruction."""
        foreseen = await self.foreseer.about(
            [
                Asked(
                    instruction=row.app,
                    text="",
                    input_tokens=row.input_tokens,
                    prompt_tokens=row.input_tokens,
                    most=payload.max_tokens,
                    tenant=row.tenant,
                )
                for row, payload in zip(rows, payloads, strict=True)
            ]
        )
        return foreseen if self.distort is None else [self.distort(about) for about in foreseen]

    # --- the kind

    def price(self, request: Request) -> Price:
        payload: Sized = request.payload
        cost = tokens_cost(payload.prompt_tokens, payload.max_tokens)
        price = self.foreseer.price(request.id, request.about, cost, ramps=not self._static)
        if not payload.prefix or not wanted(self.settings, placement_name(self), self._replicas):
            return price
        return msgspec.structs.replace(price, prefix=of_hashes(payload.prefix, payload.block_tokens))

    def settled(self, outcome: Outcome) -> None:
        self.foreseer.settled(outcome)

    def ready(self, info: EngineInfo) -> None:
        self._static = info.batching == "static"

    def decoder(self, work: Work) -> Counted:
        return Counted(work.payload, self.heard_first)

    def events_bound(self, payload: Any) -> int:
        return 4


class Counted:
    """The decoder of an answer that is only counted. Nobody reads it."""

    def __init__(self, payload: Sized, first: Callable[[str], None] | None = None) -> None:
        """`first` is told the request's id when something has come."""
        self._asked = payload
        self._first = first
        self._tokens = 0

    def feed(self, chunk: Chunk) -> Decoded:
        if self._first is not None and chunk.data is not None:
            self._first(chunk.id)
            self._first = None
        if isinstance(chunk.data, Count):
            self._tokens += chunk.data.tokens
        return _NOTHING

    def resume(self) -> Resumed | None:
        """See `Decoder`."""
        asked, made = self._asked, self._tokens
        if made >= asked.max_tokens:
            return None
        payload = msgspec.structs.replace(
            asked,
            prompt_tokens=asked.prompt_tokens + made,
            max_tokens=asked.max_tokens - made,
            continued=asked.continued + made,
        )
        return Resumed(payload=payload, steps=made)

    def usage(self) -> dict[str, float]:
        return {"prompt_tokens": float(self._asked.prompt_tokens), "output_tokens": float(self._tokens)}


_NOTHING = Decoded()
