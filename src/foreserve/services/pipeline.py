"""Pipelines as they are served: requests enter the ledger, run on terms, and end in one outcome like any other.

    summarise = fs.ask(chat, "Say it in one sentence: {text}")

    @fs.pipeline
    def summary(text: str):
        return summarise(text)

    app = fs.App(chat=chat, summary=summary)

A pipeline holds no slot and has no replicas: what takes time is asked of the app's services, as children of the
request. Plain stages run in the server's process and are counted on the request itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, overload

import msgspec

from foreserve.clock import now
from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.dispatch.ledger import Ledger
from foreserve.errors import ClientGone, ConfigError, EngineFailed, Expired, RequestError, Shed, Unavailable
from foreserve.parsing import parse
from foreserve.pipelines.floor import Floor
from foreserve.pipelines.learned import Learned, MapFacts, StageFacts
from foreserve.pipelines.pipeline import Pipeline
from foreserve.pipelines.run import Run
from foreserve.pipelines.timeline import Timeline
from foreserve.services.base import Service
from foreserve.services.pipeline_calls import Calls, service_name
from foreserve.services.pipeline_expected import Promises, expected_calls, refusal, service_stages
from foreserve.services.pipeline_feeding import check_feeding
from foreserve.settings import PipelineSettings

KEPT: Final = 64
"""Of how many of the latest requests the timeline can be asked for."""

RETRY_S: Final = 1.0
"""When one that is refused may come again, as long as none has ended."""


class ServablePipeline(Pipeline):
    """A pipeline with settings, as an app serves it. Made by `pipeline`."""

    def __init__(self, code: Callable[..., Any], settings: PipelineSettings) -> None:
        super().__init__(code)
        self.settings = settings

    def check(self, kinds: Mapping[str, Any]) -> None:
        """Whether the app serves what its stages ask for. Raises ConfigError."""
        for stage, _ in service_stages(self.plan.root):
            where = f"pipeline {self.name!r}: stage {stage.name!r}"
            name = service_name(stage.ref, kinds, where)
            if not isinstance(kinds[name], stage.kind):
                raise ConfigError(f"{where}: {name!r} is a {kinds[name].name}, not a {stage.kind.name}")
        check_feeding(self.plan, kinds, self.name)

    def prepared(self, kinds: Mapping[str, Any]) -> None:
        """Whether those services, now prepared, do what its stages ask. Raises ConfigError."""
        for stage, _ in service_stages(self.plan.root):
            where = f"pipeline {self.name!r}: stage {stage.name!r}"
            stage.fits(kinds[service_name(stage.ref, kinds, where)], where)


@overload
def pipeline(code: Callable[..., Any], /) -> ServablePipeline: ...
@overload
def pipeline(**words: Any) -> Callable[[Callable[..., Any]], ServablePipeline]: ...
def pipeline(code: Callable[..., Any] | None = None, /, **words: Any) -> Any:
    """`@pipeline`, or `@pipeline(deadline_s=30)` with words of `PipelineSettings`, over a function of flows.

    Raises ConfigError for wrong words, and for what does not fit in the pipeline, with what would.
    """
    settings = parse(words, PipelineSettings, "pipeline(...)")
    if code is not None:
        return ServablePipeline(code, settings)
    return lambda decorated: ServablePipeline(decorated, settings)


class PipelineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One pipeline, for people and metrics: how many requests run, the services it asks, what it has learned."""

    name: str
    running: int
    services: list[str]
    stages: dict[str, StageFacts]
    maps: dict[str, MapFacts]


class ServedPipeline:
    """What the gateway talks to. `services` are those of the app, `settled` hears how each request has ended."""

    def __init__(
        self,
        name: str,
        pipeline: ServablePipeline,
        services: Mapping[str, Service],
        ledger: Ledger,
        settled: Callable[[Outcome], None],
    ) -> None:
        self.name = name
        self.pipeline = pipeline
        self.settings = pipeline.settings
        self.learned = Learned()
        self.timelines: OrderedDict[str, Timeline] = OrderedDict()
        """Of the latest requests, by id."""
        self._services = services
        self._ledger = ledger
        self._settled = settled
        self._floor = Floor(self.settings.max_frames)
        self._mean_s: float | None = None
        self._open: dict[str, Run] = {}
        kinds = {name: service.kind for name, service in services.items()}
        self._names = {each: service_name(each.ref, kinds, name) for each, _ in service_stages(pipeline.plan.root)}
        self._promises = Promises()
        self._draining = False

    def submit(self, request: Request, inputs: Mapping[str, Any], *, listens: bool) -> Run:
        """Take a request in and begin; `inputs` by name, as `Pipeline.inputs` has checked them.

        Raises Shed when as many run as may, or when its deadline is known to be too soon; that is in the ledger as any
        other. LedgerError for an id that is open.
        """
        self._ledger.enter(request.id)
        if self._draining:
            stopping = Unavailable("the server is stopping")
            self._end(request, None, stopping, {})
            raise stopping
        if len(self._open) >= self.settings.max_running:
            retry = RETRY_S if self._mean_s is None else self._mean_s / self.settings.max_running
            shed = Shed(
                f"{len(self._open)} requests of {self.name!r} run, as many as may (`max_running`)",
                retry_after=max(retry, 0.1),
            )
            self._end(request, None, shed, {})
            raise shed
        expected = expected_calls(self.pipeline.plan, self.learned, self._names)
        if request.deadline is not None:
            views = {name: self._services[name].dispatcher.view() for name in expected}
            late = refusal(expected, self._promises.total, views, request.deadline - now())
            if late is not None:
                self._end(request, None, late, {})
                raise late
        self._promises.make(request.id, expected)
        calls = Calls(self._services, request, self.learned, self._promises)
        timeline = Timeline(self.name, request.id, request.arrival)
        run = Run(
            self.pipeline.plan,
            inputs,
            id=request.id,
            floor=self._floor,
            arrival=request.arrival,
            deadline=request.deadline,
            tenant=request.tenant,
            services=calls,
            timeline=timeline,
            learned=self.learned,
            streaming=self.settings.streaming,
        )
        self._open[request.id] = run
        self.timelines[request.id] = timeline
        while len(self.timelines) > KEPT:
            self.timelines.popitem(last=False)
        run.when_ended(lambda run: self._over(request, run, calls))
        return run.start(listens=listens)

    def _over(self, request: Request, run: Run, calls: Calls) -> None:
        del self._open[request.id]
        self._promises.over(request.id)
        if run.error is None:
            seconds = now() - request.arrival
            self._mean_s = seconds if self._mean_s is None else 0.9 * self._mean_s + 0.1 * seconds
        self._end(request, run, run.error, calls.usage)

    def _end(self, request: Request, run: Run | None, error: BaseException | None, usage: dict[str, float]) -> None:
        kind, shown = _kind(error)
        outcome = Outcome(
            id=request.id,
            service=self.name,
            kind=kind,
            arrival=request.arrival,
            ended=now(),
            started=None if run is None else request.arrival,
            first=None if run is None else run.events.first,
            code=shown.code if shown is not None else "",
            reason=shown.message if shown is not None else "",
            retry_after=shown.retry_after if shown is not None else None,
            tenant=request.tenant,
            usage=usage,
        )
        self._ledger.end(outcome)
        self._settled(outcome)

    async def drain(self, drain_s: float) -> None:
        """Take nothing more in, and end what still runs after `drain_s`."""
        self._draining = True
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(drain_s, self._stop)
        while self._open:
            ended = loop.create_future()
            next(iter(self._open.values())).when_ended(lambda _, ended=ended: ended.set_result(None))  # type: ignore[misc]
            await ended
        alarm.cancel()

    def _stop(self) -> None:
        for run in list(self._open.values()):
            run.cancel("the server is stopping")

    @property
    def promises(self) -> dict[str, float]:
        """How many calls of each service the requests that run are still expected to make."""
        return dict(self._promises.total)

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._open)

    def status(self) -> PipelineStatus:
        """A snapshot."""
        return PipelineStatus(
            name=self.name,
            running=self.running,
            services=list(dict.fromkeys(self._names.values())),
            stages=dict(self.learned.stages),
            maps=dict(self.learned.maps),
        )


def _kind(error: BaseException | None) -> tuple[OutcomeKind, RequestError | None]:
    """How a request has ended whose pipeline ended with `error`, and what its client is told."""
    match error:
        case None:
            return OutcomeKind.DONE, None
        case Shed():
            return OutcomeKind.SHED, error
        case Expired():
            return OutcomeKind.EXPIRED, error
        case ClientGone():
            return OutcomeKind.CANCELLED, error
        case RequestError():
            return OutcomeKind.FAILED, error
        case _:
            return OutcomeKind.FAILED, EngineFailed(f"a stage failed: {type(error).__name__}: {error}")


def told(error: BaseException) -> RequestError:
    """What a client is told of the error that a request ended with."""
    return _kind(error)[1] or EngineFailed(str(error))
