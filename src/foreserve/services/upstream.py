"""The upstream kind: a model on servers that already run, each of them a replica. Answers pass as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from foreserve.chosen import placement_name
from foreserve.core import Chunk, EngineInfo, EngineSpec, Outcome, Price, Request, Work
from foreserve.engines.forwarding import Answer, Body, Forward, Head
from foreserve.parsing import parse, with_first
from foreserve.ports import Decoded
from foreserve.registry import entry, load
from foreserve.services.foreseeing import Foreseer
from foreserve.services.foreseen import Foreseen, tokens_cost
from foreserve.services.observing import Observer
from foreserve.services.prefixes import of_bytes, wanted
from foreserve.services.upstream_asked import asked_upstream
from foreserve.settings import QueueSettings, UpstreamSettings

BYTES_PER_TOKEN = 4
"""Rough, for English text; it only ranks requests until something better is learned."""

UNBOUNDED = 65_536
"""Requests in flight at each server when only observing: more than the connections that we take."""

_EVENTS = 65_536
_NOTHING = Decoded()


class Upstream:
    """A model on running OpenAI-compatible servers: `Upstream(["http://gpu1:8000", "http://gpu2:8000"], model="m")`.

    The other words are those of `UpstreamSettings`; what is wrong among them is a ConfigError.
    """

    name = "upstream"
    policy = "hrrn"
    placement = "anticipated"

    def __init__(self, urls: Sequence[str] | str | None = None, /, **words: Any) -> None:
        given = urls if urls is None else [urls] if isinstance(urls, str) else list(urls)
        words = with_first(words, "urls", given, "Upstream(...)", "the servers are")
        self._setup(parse(words, UpstreamSettings, "Upstream(...)"), "Upstream(...)")

    @classmethod
    def from_settings(cls, settings: UpstreamSettings, where: str) -> Upstream:
        """As an app file in YAML makes it; `where` is named in errors."""
        made = cls.__new__(cls)
        made._setup(settings, where)
        return made

    def _setup(self, settings: UpstreamSettings, where: str) -> None:
        self.asked = settings
        """The settings as they were given; when only observing, `settings` takes everything at once instead.

        With `engine_priority` those also ask our order to tell each request's place.
        """
        self.settings = settings
        if settings.engine_priority and settings.policy in ("auto", self.policy):
            told = {"engine_priority": True, **settings.policy_options}
            self.settings = msgspec.structs.replace(settings, policy_options=told)
        self.models: tuple[str, ...] = () if settings.model is None else (settings.model,)
        """What the servers call the model, or the models they list when none was chosen."""
        self.idempotent = not settings.observe
        self._engine = entry("engine", "remote", f"{where}: engine")
        self._context: int | None = None
        self._any_name = False
        # Nothing would come of foresight when only observing, so nothing is spent on it.
        off = msgspec.structs.replace(settings.foresight, predictor="off")
        self.foreseer = Foreseer(off if settings.observe else settings.foresight)
        self.observer: Observer | None = None
        if settings.observe:
            self.settings = msgspec.structs.replace(settings, queue=QueueSettings(admission="always"))
            queue = settings.queue
            admission = load(
                "admission", "bounded" if queue.admission == "auto" else queue.admission, f"{where}: queue.admission"
            )
            self.observer = Observer(
                admission(max_waiting=queue.max_waiting, max_wait_s=queue.max_wait_s),
                slots=settings.max_running * len(settings.urls),
            )

    def prepare(self, progress: Callable[[float, str], None] | None = None) -> None:
        """Nothing is made on this machine."""

    # --- the four things a kind brings

    def engines(self) -> Sequence[EngineSpec]:
        """One for each server."""
        return [self.engine(url) for url in self.asked.urls]

    def engine(self, url: str) -> EngineSpec:
        """That of the server at `url`, which may be one that joins later."""
        settings = self.asked
        return EngineSpec(
            factory=self._engine.value,
            options={
                "url": url,
                "model": settings.model,
                "api_key_env": settings.api_key_env,
                "max_running": UNBOUNDED if settings.observe else settings.max_running,
                "priority": settings.engine_priority and not settings.observe,
                "connect_s": settings.connect_s,
                "timeout_s": settings.timeout_s,
                "probe": not settings.observe if settings.probe is None else settings.probe,
                "probe_every_s": settings.probe_every_s,
                "probe_limit_s": settings.probe_limit_s,
                "probe_busy_s": settings.probe_busy_s,
                "await_s": settings.start_limit_s if settings.scaled else 0.0,
                "loading_s": settings.start_limit_s,
            },
            start_limit_s=settings.start_limit_s,
            liveness_s=settings.liveness_s,
            most_backoff_s=2.0,
        )

    def price(self, request: Request) -> Price:
        """One slot, and a rough count of tokens where the answer is foreseen or the request bounds it."""
        payload: Forward = request.payload
        cost = tokens_cost(len(payload.body) / BYTES_PER_TOKEN, payload.max_tokens, self._context)
        price = self.foreseer.price(request.id, request.about, cost, ramps=True)
        known = request.about
        if isinstance(known, Foreseen) and known.prefix is not None:
            return msgspec.structs.replace(price, prefix=known.prefix)
        return price

    def settled(self, outcome: Outcome) -> None:
        self.foreseer.settled(outcome)

    def ready(self, info: EngineInfo) -> None:
        """Learn what the server serves."""
        self._context = info.facts.get("context_tokens", self._context)
        there = info.facts.get("models", ())
        # llama.cpp with one model takes any name for it, and says the name it was asked by in some answers.
        self._any_name = info.facts.get("make") == "llamacpp" and len(there) == 1
        if self.asked.model is None:
            self.models = tuple(dict.fromkeys((*self.models, *there)))

    def decoder(self, work: Work) -> Passing:
        """See `Passing`."""
        return Passing()

    def events_bound(self, payload: Forward) -> int:
        """Two for each token asked for: a server may send each in an event of its own."""
        return _EVENTS if payload.max_tokens is None else min(_EVENTS, 1024 + 2 * payload.max_tokens)

    # --- what the gateway asks

    async def about(
        self, payload: Forward, messages: msgspec.Raw | None, prompt: msgspec.Raw | None, tenant: str
    ) -> Foreseen | None:
        """What is foreseen of a request with these fields in its body, for `Request.about`; nothing when observing."""
        if self.observer is not None:
            return None
        asked = asked_upstream(payload.path, messages, prompt, payload.max_tokens, self._context, tenant)
        if asked is None:
            return None
        about = (await self.foreseer.about([asked]))[0]
        told = messages if messages is not None else prompt
        most = 2 if self.asked.may_join is not None else len(self.asked.urls)  # any number may come
        if told is None or not wanted(self.settings, placement_name(self), most):
            return about
        return msgspec.structs.replace(about, prefix=of_bytes(memoryview(told)))

    def name_there(self, asked: str) -> str:
        """What the servers call the model that a client calls `asked`."""
        if self._any_name or asked in self.models or len(self.models) != 1:
            return asked
        return self.models[0]


class Passing:
    """Chunks to `Head` and `Body` events, as they are. Token counts come with the engine's finish."""

    def feed(self, chunk: Chunk) -> Decoded:
        if chunk.data is None:
            return _NOTHING
        return Decoded(events=(_as_answer(chunk.data),))

    def usage(self) -> dict[str, float]:
        return {}


def _as_answer(data: Any) -> Answer:
    """Chunks that crossed a process, or a launcher that copies, hold plain values."""
    return data if isinstance(data, Head | Body) else msgspec.convert(data, Answer)
