"""What must hold in every simulation, whatever goes wrong in it: conservation, bounds, no starvation, nothing left."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, Final

import msgspec

from foreserve.core import Outcome, OutcomeKind, Request, Work
from foreserve.dispatch.admission import MOST_OVER
from foreserve.dispatch.flight import Flight
from foreserve.dispatch.recorded import RecordedPolicy
from foreserve.errors import LedgerError
from foreserve.fleet.replica import State
from foreserve.services.base import Service
from foreserve.simulation.clock import VirtualLoop
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.stage import Stage

LOOK_S: Final = 1.0
"""Between two looks at the queues."""

IDLE_S: Final = 10.0
"""So long a request may wait while a replica has nothing at all to do: policies hold batches back for less."""

SETTLE_S: Final = 600.0
"""Bounds what a replica takes to come back: its silence, its backoff and a late start."""

HUNG_S: Final = 3600.0
"""Nothing takes so long: when nobody has come or ended for this time while requests are open, they never will."""

MUCH: Final = 20
"""A tenant that asked so often, on terms that others were served on, got something."""

MOST_FINDINGS: Final = 50

MOST_ENDED: Final = 10_000
"""Ids of requests that have ended that are remembered."""

EPSILON_S: Final = 1e-6


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that does not hold: which check, when (loop seconds), in words, and the figures of it."""

    check: str
    at: float
    words: str
    figures: dict[str, float] = {}


class Checks:
    """Looks on while a simulation runs, and once more when it is over. Decides nothing.

    `begin` it with the stage, before the first row; `settle` after the last request has ended; `left` when the app has
    been stopped. `findings` is empty when all is well.
    """

    def __init__(self, stage: Stage, oracle: Oracle) -> None:
        self.findings: list[Finding] = []
        self.outcomes: Counter[OutcomeKind] = Counter()
        self._stage = stage
        self._oracle = oracle
        self._open: dict[str, float | None] = {}
        """Deadlines, by id."""
        self._came = 0.0
        self._ended: dict[str, None] = {}
        """The last that ended, so that a second end can be told from one that nobody submitted."""
        self.last_ended = 0.0
        """When the last outcome came (loop seconds)."""
        self._asked: dict[str, Counter[OutcomeKind]] = {}
        self._idle: dict[str, tuple[str, float]] = {}
        self._look_later: asyncio.TimerHandle | None = None
        self._errors = _Errors(self._find)
        self._loop = asyncio.get_running_loop()
        self.hung: asyncio.Future[None] = self._loop.create_future()
        """Done when what is open will never end."""

    def begin(self) -> None:
        """Look on from now."""
        self._stage.running.observers.append(self._heard)
        logging.getLogger("foreserve").addHandler(self._errors)
        self._look_later = self._loop.call_later(LOOK_S, self._look)

    def submitted(self, request: Request) -> None:
        """To be called before each request."""
        if request.id in self._open or request.id in self._ended:
            self._find("once", f"request {request.id} was submitted twice")
        self._open[request.id] = request.deadline
        self._came = self._loop.time()

    # --- while it runs

    def raised(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a callback or a task raised and nobody caught: an exception handler of the loop."""
        self._find("raised", f"{context.get('message')}: {context.get('exception')!r}")

    def _heard(self, outcome: Outcome) -> None:
        deadline: float | None = None
        if outcome.id in self._open:
            deadline = self._open.pop(outcome.id)
        else:
            words = "ended twice" if outcome.id in self._ended else "ended and was never submitted"
            self._find("once", f"request {outcome.id} {words} ({outcome.kind})")
        self._ended[outcome.id] = None
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        self.outcomes[outcome.kind] += 1
        self._asked.setdefault(outcome.tenant, Counter())[outcome.kind] += 1
        self._monotone(outcome)
        self._in_time(outcome, deadline)

    def _monotone(self, outcome: Outcome) -> None:
        times = [outcome.arrival, outcome.started, outcome.first, outcome.ended]
        known = [at for at in times if at is not None]
        if known != sorted(known) or outcome.ended != self._loop.time() or outcome.ended < self.last_ended:
            figures = {"arrival": outcome.arrival, "ended": outcome.ended, "before": self.last_ended}
            self._find("clock", f"the times of {outcome.id} are in no order: {known}", figures)
        self.last_ended = max(self.last_ended, outcome.ended)

    def _in_time(self, outcome: Outcome, deadline: float | None) -> None:
        """Whoever waited was not left waiting, and nobody outlived its deadline."""
        service = self._stage.running.services[outcome.service]
        most = _most_wait_s(service)
        until = outcome.started if outcome.started is not None else outcome.ended
        if not outcome.attempt and until - outcome.arrival > most + EPSILON_S:
            figures = {"waited": until - outcome.arrival, "most": most}
            self._find(
                "waited", f"{outcome.id} waited {until - outcome.arrival:.3f} s, the most is {most:g} s", figures
            )
        if deadline is not None and outcome.ended > max(deadline, outcome.arrival) + EPSILON_S:
            late = outcome.ended - deadline
            words = f"{outcome.id} ended as {outcome.kind} {late:.3f} s after its deadline"
            self._find("deadline", words, {"late": late})

    def _look(self) -> None:
        self._look_later = self._loop.call_later(LOOK_S, self._look)
        if self._open and self._loop.time() - max(self._came, self.last_ended) > HUNG_S and not self.hung.done():
            self._find("hung", f"nothing has happened for {HUNG_S:g} s, and {len(self._open)} requests are open")
            self.hung.set_result(None)
        for service in self._stage.running.services.values():
            self._queue(service)
            self._rooms(service)
            self._idleness(service)

    def _queue(self, service: Service) -> None:
        """By twice `max_waiting`, whatever admission judges, but for `always`."""
        queue, waiting = service.settings.queue, service.dispatcher.waiting
        # Who finds a free slot does not count as waiting until its turn, and who is lost comes back to the queue.
        replicas = service.replicas.all
        most = max((one.capacity().get("slots", 0.0) for one in replicas), default=0.0)
        # What a replica that is gone by now had may have come back, so all that there may be are counted.
        most_replicas = max(len(replicas), service.settings.bounds[1])
        slots = max(most, self._stage.twins[service.name].profile.slots) * most_replicas
        if queue.admission != "always" and len(waiting) > MOST_OVER * queue.max_waiting + 2 * slots:
            figures = {"waiting": float(len(waiting)), "max_waiting": float(queue.max_waiting)}
            self._find("queue", f"{service.name}: {len(waiting)} wait; its bound is {queue.max_waiting}", figures)
        now = self._loop.time()
        for flight in waiting.values():
            deadline = flight.work.deadline
            late = deadline is not None and now > deadline + EPSILON_S
            if now - flight.waits_since > _most_wait_s(service) + EPSILON_S or late:
                words = f"{flight.work.id} still waits after {now - flight.waits_since:.3f} s in the queue"
                self._find("waited", words, {"waited": now - flight.waits_since, "most": _most_wait_s(service)})

    def _rooms(self, service: Service) -> None:
        """No replica is given more than it holds, and no engine holds more than it has."""
        for replica in service.replicas.all:
            slots = replica.capacity().get("slots")
            if slots is None:
                continue
            running = replica.load.running if replica.load is not None else None
            for what, held in (("was given", len(replica.held)), ("runs", running)):
                if held is not None and held > slots:
                    figures = {"held": float(held), "slots": slots}
                    self._find("room", f"{replica.name} {what} {held} requests with {slots:g} slots", figures)
            used = replica.load.kv_fraction if replica.load is not None else None
            if used is not None and used > 1.0 + EPSILON_S:
                self._find("room", f"{replica.name} uses {used:.3f} of its KV cache", {"kv_fraction": used})

    def _idleness(self, service: Service) -> None:
        """Nobody waits for long beside a replica that has nothing to do, nor the oldest beside one that has room."""
        now = self._loop.time()
        waiting = service.dispatcher.waiting
        free = [one.name for one in service.replicas.all if one.state is State.READY and not one.held]
        if waiting and not free:
            oldest = min(waiting.values(), key=lambda flight: flight.work.arrival)
            rooms = [room for one in service.replicas.all if (room := one.room()) is not None]
            free = [room.replica for room in rooms if room.takes([oldest.work])]
        if not free or not waiting:
            self._idle.pop(service.name, None)
            return
        request_id, since = self._idle.get(service.name, ("", now))
        if request_id not in waiting:
            request_id, since = next(iter(waiting)), now
        self._idle[service.name] = (request_id, since)
        if now - since > IDLE_S:
            words = f"{request_id} has waited for {now - since:.1f} s while {free[0]} had room"
            self._find("idle", words, {"seconds": now - since, "waiting": float(len(waiting))})

    # --- when it is over

    async def settle(self, limit_s: float) -> None:
        """Everybody has an outcome. Within `limit_s` all replicas are back, and hold nothing."""
        if self._look_later is not None:
            self._look_later.cancel()
        services = self._stage.running.services.values()
        for _ in range(int(limit_s / LOOK_S)):
            if not any(self._unsettled(service) for service in services):
                break
            await asyncio.sleep(LOOK_S)
        for service in services:
            for words in self._unsettled(service):
                self._find("settled", f"{service.name}: after {limit_s:g} s {words}")
            self._nothing_left(service)
        try:
            self._stage.running.ledger.check(idle=True)
        except LedgerError as error:
            self._find("ledger", str(error))
        if self._open:
            self._find("once", f"{len(self._open)} requests never ended, such as {next(iter(self._open))}")
        if len(self._oracle):
            self._find("left", f"the oracle still knows {len(self._oracle)} requests")
        self._tenants()

    def _unsettled(self, service: Service) -> list[str]:
        replicas = service.replicas
        found = [f"{one.name} is {one.state}" for one in replicas.all if one.state is not State.READY]
        return found + [f"{one.name} holds {next(iter(one.held))}" for one in replicas.all if one.held]

    def _nothing_left(self, service: Service) -> None:
        dispatcher = service.dispatcher
        for what, held in (("wait", dispatcher.waiting), ("run", dispatcher.running)):
            if held:
                self._find("left", f"{service.name}: {len(held)} still {what}, such as {next(iter(held))}")
        policy = dispatcher.policy
        for found in reachable(policy.inner if isinstance(policy, RecordedPolicy) else policy, (Work, Flight)):
            self._find("left", f"{service.name}: its policy still has {getattr(found, 'id', found)}")
        tenants = dispatcher.tenants_waiting
        if tenants:
            self._find("left", f"{service.name}: tenants are still counted as waiting: {dict(tenants)}")

    def _tenants(self) -> None:
        """Who asked for much, and did not leave, got something where others got most of what they asked for."""
        done = sum(counts[OutcomeKind.DONE] for counts in self._asked.values())
        all_of_them = sum(counts.total() - counts[OutcomeKind.CANCELLED] for counts in self._asked.values())
        for tenant, counts in self._asked.items():
            asked = counts.total() - counts[OutcomeKind.CANCELLED]
            if asked >= MUCH and not counts[OutcomeKind.DONE] and done > all_of_them / 2:
                words = f"tenant {tenant} asked {asked} times and got nothing; {done} of {all_of_them} were done"
                self._find("tenant", words, {"asked": float(asked), "done": float(done)})

    def left(self) -> None:
        """The app has been stopped: nothing of it is still to happen."""
        self.leave()
        current = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not current and not task.done():
                self._find("left", f"a task still runs: {task.get_name()} ({task.get_coro()})")
        for timer in self._loop.timers() if isinstance(self._loop, VirtualLoop) else ():
            self._find("left", f"a timer is still set: {timer}")

    def leave(self) -> None:
        """Look on no more. Idempotent."""
        logging.getLogger("foreserve").removeHandler(self._errors)
        if self._look_later is not None:
            self._look_later.cancel()

    def _find(self, check: str, words: str, figures: Mapping[str, float] | None = None) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(check=check, at=self._loop.time(), words=words, figures=dict(figures or {})))


def _most_wait_s(service: Service) -> float:
    """How long a request may wait there; where there may be no replica, a start comes before that."""
    on_demand = service.replicas.limit_s if service.replicas.on_demand else 0.0
    return service.settings.queue.max_wait_s + on_demand


class _Errors(logging.Handler):
    """What the house logs as an error is a defect of its own: what clients and workers do wrong is a warning."""

    def __init__(self, find: Callable[[str, str], None]) -> None:
        super().__init__(logging.ERROR)
        self._find = find

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        self._find("logged", f"{record.getMessage()}{f': {cause!r}' if cause is not None else ''}")


def reachable(root: Any, kinds: tuple[type, ...], *, most: int = 200_000) -> Iterator[Any]:
    """Every object of these kinds that can be reached from `root`, without going through classes, modules or loops."""
    seen, todo = {id(root)}, [root]
    while todo and len(seen) < most:
        for found in referents(todo.pop()):
            if id(found) in seen or isinstance(found, (type, ModuleType, asyncio.AbstractEventLoop)):
                continue
            seen.add(id(found))
            if isinstance(found, kinds):
                yield found
            todo.append(found)


def referents(one: Any) -> list[Any]:
    """What an object holds, where the collector does not look too: structs that were made without it."""
    if isinstance(one, FunctionType):  # not by its globals, which are a module's
        return [*(one.__closure__ or ()), one.__defaults__, one.__kwdefaults__]
    found = gc.get_referents(one)
    if isinstance(one, msgspec.Struct) and not found:
        found = [getattr(one, name) for name in one.__struct_fields__ if hasattr(one, name)]
    return found
