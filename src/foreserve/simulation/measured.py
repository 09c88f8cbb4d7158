"""Watches a simulation: what came, how it ended, how full the house was. Memory does not grow with requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from foreserve.core import Outcome, OutcomeKind, Request
from foreserve.running import Running
from foreserve.scaling import ScalingDecision
from foreserve.services.base import Service
from foreserve.simulation import figures
from foreserve.simulation.clients import is_retry
from foreserve.simulation.need import Need
from foreserve.simulation.presence import Presence
from foreserve.simulation.replica import SimulatedConnection
from foreserve.simulation.scalings import Scalings
from foreserve.simulation.tally import CURVE, Tally
from foreserve.simulation.windows import Window, Windows
from foreserve.traces.histogram import OTHERS
from foreserve.traces.row import TraceRow

LOOKS: Final = 4
"""How often in a window the queues and KV caches are looked at. All else is counted as it happens."""


class Measured:
    """Of one run. `launched` is to hear of every replica, from before the first start; `came` is `Drive`'s `before`,
    `ended` an observer of outcomes; `start` begins to look every so often.

    Latencies are told as a client of the gateway would see them, less the network: from the arrival on.
    """

    def __init__(self, running: Running, needs: Mapping[str, Need], named: Collection[str], width_s: float) -> None:
        """`named` are the tenants that are told of one by one."""
        self._running = running
        self._needs = needs
        self._named = frozenset(named)
        self._windows = {name: Windows(width_s) for name in running.services}
        self._tenants: dict[str, dict[str, Tally]] = {name: {} for name in running.services}
        self._deadlines: dict[str, float] = {}
        self._presence = {name: Presence(windows) for name, windows in self._windows.items()}
        self._scalings = {name: Scalings(self._windows[name]) for name in running.services if scales(running, name)}
        self._timer: asyncio.TimerHandle | None = None
        self.began = 0.0
        """When the trace began, on the loop's clock."""
        self._looked = 0.0
        self.last_arrival = 0.0
        self.last_end = 0.0

    def start(self) -> None:
        """The trace begins now."""
        self.began = self._looked = asyncio.get_running_loop().time()
        for presence in self._presence.values():
            presence.begin()
        for scalings in self._scalings.values():
            scalings.begin()
        self._look()

    def stop(self) -> None:
        """Look once more, and then no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._look(last=True)
        for presence in self._presence.values():
            presence.end()
        for scalings in self._scalings.values():
            scalings.end()

    # --- what is told

    def launched(self, connection: SimulatedConnection) -> None:
        """A replica is about to start."""
        self._presence[connection.name.rpartition("/")[0]].launched(connection)

    def scaled(self, decision: ScalingDecision) -> None:
        """A service's scaler has decided."""
        if decision.service in self._scalings:
            self._scalings[decision.service].heard(decision)

    def came(self, request: Request, row: TraceRow) -> None:
        """A request is about to be submitted. Who comes again is no further load, and nothing more is needed for it."""
        if request.deadline is not None:
            self._deadlines[request.id] = request.deadline
        if is_retry(request.id):
            return
        at = request.arrival - self.began
        window = self._windows[request.service].at(at)
        window.arrived += 1
        window.input_tokens += row.input_tokens
        window.output_tokens += row.output_tokens
        window.need_s += self._needs[request.service].seconds(row.input_tokens, row.output_tokens)
        self.last_arrival = at

    def ended(self, outcome: Outcome) -> None:
        """A request has ended."""
        self._of(outcome).ended(outcome, self._deadlines.pop(outcome.id, None))
        windows = self._windows[outcome.service]
        self.last_end = outcome.ended - self.began
        window = windows.at(self.last_end)
        window.ended[outcome.kind] += 1
        if outcome.kind is OutcomeKind.DONE:
            window.tokens += int(outcome.usage.get("output_tokens", 0))
            window = windows.at(outcome.arrival - self.began)
            window.e2e.add(outcome.ended - outcome.arrival)
            if outcome.first is not None:
                window.ttft.add(outcome.first - outcome.arrival)

    def _of(self, outcome: Outcome) -> Tally:
        tenants = self._tenants[outcome.service]
        tally = tenants.get(outcome.tenant)
        if tally is None:
            name = outcome.tenant if outcome.tenant in self._named else OTHERS
            tally = tenants.setdefault(name, Tally())
        return tally

    # --- what is looked at

    def _look(self, last: bool = False) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for name, service in self._running.services.items():
            # What a look finds stands for the time since the one before.
            windows = self._windows[name]
            spans = list(windows.during(self._looked - self.began, now - self.began))
            _sample(service, spans or [(windows.at(now - self.began), 0.0)])
        self._looked = now
        if not last:
            width_s = min(windows.width_s for windows in self._windows.values())
            self._timer = loop.call_later(width_s / LOOKS, self._look)

    # --- what has been found

    def services(self, preemptions: Mapping[str, int]) -> dict[str, figures.ServiceFigures]:
        """Of each service that requests came for, or that has replicas. `preemptions`: by service."""
        width_s = max(windows.width_s for windows in self._windows.values())
        for windows in self._windows.values():
            windows.widen(width_s)
        return {name: self._service(name, preemptions[name]) for name in self._windows}

    def total(self) -> figures.Tally:
        """Of all services together."""
        return self._sum(self._tenants).figures(curve=CURVE)

    def _sum(self, services: Mapping[str, Mapping[str, Tally]]) -> Tally:
        total = Tally()
        for tenants in services.values():
            for tally in tenants.values():
                total.merge(tally)
        return total

    def _service(self, name: str, preemptions: int) -> figures.ServiceFigures:
        windows = list(self._windows[name])
        tenants = self._tenants[name]
        presence, scalings = self._presence[name], self._scalings.get(name)

        def whole(name: str) -> float:
            return math.fsum(getattr(window, name) for window in windows)

        def share(part: str, of: str) -> float | None:
            return whole(part) / whole(of) if whole(of) else None

        return figures.ServiceFigures(
            tally=self._sum({name: tenants}).figures(curve=CURVE),
            tenants={tenant: tenants[tenant].figures() for tenant in sorted(tenants)},
            series=_series(windows, self._windows[name].width_s, self.last_end),
            replica_hours=presence.replica_s / 3600.0,
            busy=share("busy_s", "ready_s"),
            slots_used=share("held_s", "slot_s"),
            kv_used=share("kv_s", "kv_ready_s"),
            need_replicas=whole("need_s") / self.last_arrival if self.last_arrival else 0.0,
            most_waiting=max((window.most_waiting for window in windows), default=0),
            preemptions=preemptions,
            scaling=None if scalings is None else scalings.told(presence.starts, presence.stops),
        )


def scales(running: Running, name: str) -> bool:
    """Whether the number of a service's replicas may change."""
    least, most = running.kinds[name].settings.bounds
    return least < most


def _sample(service: Service, spans: list[tuple[Window, float]]) -> None:
    """One look at a service, for these spans of windows."""
    dispatcher = service.dispatcher
    waiting, most = dispatcher.view().waiting, dispatcher.most_waiting()
    loads = [one.load.kv_fraction for one in service.replicas.ready if one.load is not None]
    known = [fraction for fraction in loads if fraction is not None]
    for window, seconds in spans:
        window.looked_s += seconds
        window.waiting_s += seconds * waiting
        window.most_waiting = max(window.most_waiting, most)
        window.kv_ready_s += seconds * len(known)
        window.kv_s += seconds * sum(known)


def _series(windows: list[Window], width_s: float, end_s: float) -> figures.Series:
    """The last window counts as long as it lasted."""
    spans = [width_s] * len(windows)
    if spans and 0 < end_s - (len(windows) - 1) * width_s < width_s:
        spans[-1] = end_s - (len(windows) - 1) * width_s

    def rates(amounts: Iterator[float]) -> list[float]:
        return [amount / span for amount, span in zip(amounts, spans, strict=True)]

    def means(pairs: Iterator[tuple[float, float]]) -> list[float | None]:
        return [amount / over if over else None for amount, over in pairs]

    return figures.Series(
        width_s=width_s,
        arrivals=rates(float(each.arrived) for each in windows),
        input_tokens=rates(float(each.input_tokens) for each in windows),
        output_tokens=rates(float(each.output_tokens) for each in windows),
        tokens_out=rates(float(each.tokens) for each in windows),
        need=rates(each.need_s for each in windows),
        ended={kind.value: rates(float(each.ended[kind]) for each in windows) for kind in OutcomeKind},
        waiting=means((each.waiting_s, each.looked_s) for each in windows),
        most_waiting=[each.most_waiting for each in windows],
        running=means((each.held_s, each.looked_s) for each in windows),
        ready=means((each.ready_s, each.looked_s) for each in windows),
        replicas=means((each.replica_s, each.looked_s) for each in windows),
        wanted=means((each.wanted_s, each.decided_s) for each in windows),
        foreseen=means((each.foreseen_need_s, each.foreseen_s) for each in windows),
        slots_used=means((each.held_s, each.slot_s) for each in windows),
        kv_used=means((each.kv_s, each.kv_ready_s) for each in windows),
        ttft_p50=[each.ttft.quantile(0.5) for each in windows],
        ttft_p99=[each.ttft.quantile(0.99) for each in windows],
        e2e_p50=[each.e2e.quantile(0.5) for each in windows],
        e2e_p99=[each.e2e.quantile(0.99) for each in windows],
    )
