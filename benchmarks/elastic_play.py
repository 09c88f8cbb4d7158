"""Play arrivals to an encoder service and count what it is worth: utility, and how each request ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.data import trace
from benchmarks.elastic_stand import Asked, Stand
from foreserve.app import App
from foreserve.clock import now
from foreserve.core import OutcomeKind, Request
from foreserve.elastic.profile import Profile
from foreserve.loadgen import arrivals
from foreserve.ports import BatchPolicy
from foreserve.services.base import Service
from foreserve.settings import EncoderSettings
from foreserve.simulation import clock

QUEUE = {"max_waiting": 4096, "max_wait_s": 60.0, "admission": "patient"}
"""Who can still be served in time is never refused at the door, on any side."""


class Class(msgspec.Struct, frozen=True):
    """A kind of query: how much time it has, in plain passes of a batch of eight, its utility, and its share."""

    slack: float
    utility: float
    share: float


CLASSES = (Class(4.0, 2.0, 0.3), Class(8.0, 1.0, 0.4), Class(20.0, 0.5, 0.3))
"""Tight and dear, medium, loose and cheap."""


class Query(msgspec.Struct, frozen=True):
    """One request: when, of which task, how hard, and on what terms."""

    at: float
    task: str
    difficulty: float
    has_s: float
    utility: float


Plans = dict[str, dict[str, float]]
"""By task: the settings that may be used for it, and how accurate each is."""


class Tally(msgspec.Struct):
    """What came of them. `utility` counts answers that are right and on time."""

    utility: float = 0.0
    right: int = 0
    wrong: int = 0
    late: int = 0
    dropped: int = 0
    settings: Counter[str] = msgspec.field(default_factory=Counter)

    def shares(self) -> dict[str, float]:
        """Of the four ends."""
        total = max(1, self.right + self.wrong + self.late + self.dropped)
        return {name: getattr(self, name) / total for name in ("right", "wrong", "late", "dropped")}


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """A way to serve: a policy, and the settings that it may use."""

    name: str
    plans: Plans
    policy: str = "elastic"
    options: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    made: Callable[[Profile], BatchPolicy] | None = None
    """Makes the policy in place of the named one."""


def drawn(kind: str, rate: float, count: int, unit_s: float, seed: int, tasks: Sequence[str]) -> list[Query]:
    """`count` queries of a kind of load: `steady`, `bursty` or `trace`, at `rate` a second on average.

    Each is of one of the `tasks`, as likely of any.
    """
    rng = arrivals.generator(seed)
    source: Iterator[arrivals.Arrival]
    file = trace("azure_conv")
    if kind == "trace" and file is not None:
        rows = arrivals.trace(file)
        source = arrivals.scaled(rows, rate / arrivals.mean_rate(rows))
    else:
        source = arrivals.gamma(rate, 1.0 if kind == "steady" else 4.0, rng)
    draw = np.random.default_rng(seed + 1)
    found = []
    for _, arrival in zip(range(count), source, strict=False):
        each = CLASSES[draw.choice(len(CLASSES), p=[c.share for c in CLASSES])]
        task = tasks[int(draw.integers(len(tasks)))]
        found.append(Query(arrival.at, task, float(draw.random()), each.slack * unit_s, each.utility))
    return found


def simulated(side: Side, profile: Profile, queries: Sequence[Query], size: int, seed: int) -> Tally:
    """One run on the virtual clock. The ledger is checked."""
    return clock.run(_simulated(side, profile, queries, size, seed))


async def _simulated(side: Side, profile: Profile, queries: Sequence[Query], size: int, seed: int) -> Tally:
    told = {"profile": msgspec.to_builtins(profile), "size": size} if side.policy == "elastic" else {}
    settings = msgspec.convert(
        {
            "model": "stand",
            "launcher": "inline",
            "policy": side.policy,
            "policy_options": {**told, **side.options},
            "queue": QUEUE,
            "max_running": size,
        },
        EncoderSettings,
    )
    stand = Stand(settings, profile, side.plans, seed, **side.engine)
    running = App(encoder=stand, state={"history": False}).run()
    await running.start()
    service = running.services["encoder"]
    if side.made is not None:
        made = side.made(profile)
        service.dispatcher.adopt(made, service.dispatcher._admission)
    tally = await played(service, queries, lambda at: Asked(queries[at].task), _right(side.plans, queries))
    await running.stop(60.0)
    running.ledger.check()
    return tally


def _right(plans: Plans, queries: Sequence[Query]) -> Callable[[int, Any], tuple[str, bool]]:
    def right(at: int, answer: Any) -> tuple[str, bool]:
        setting = answer["setting"] if isinstance(answer, dict) else answer.setting
        return setting, queries[at].difficulty < plans[queries[at].task][setting]

    return right


async def played(
    service: Service,
    queries: Sequence[Query],
    payload: Callable[[int], Any],
    judged: Callable[[int, Any], tuple[str, bool]],
    about: Any = None,
) -> Tally:
    """Submit each at its time, with what is known `about` it.

    `judged` tells of an answer which setting made it and whether it is right.
    """
    tally, began = Tally(), now()

    async def one(at: int, query: Query) -> None:
        request = Request(
            id=f"q{at}",
            service=service.name,
            payload=payload(at),
            arrival=now(),
            deadline=now() + query.has_s,
            utility=query.utility,
            about=about,
        )
        stream = service.submit(request)
        events = [event async for turn in stream for event in turn]
        outcome = stream.outcome
        assert outcome is not None
        if outcome.kind is OutcomeKind.DONE and outcome.ended <= began + query.at + query.has_s + 1e-6:
            setting, right = judged(at, events[0])
            tally.settings[setting] += 1
            tally.right += right
            tally.wrong += not right
            tally.utility += query.utility * right
        elif outcome.started is not None:
            tally.late += 1
        else:
            tally.dropped += 1

    tasks = set()
    for at, query in enumerate(queries):
        if (wait := began + query.at - now()) > 0:
            await asyncio.sleep(wait)
        tasks.add(asyncio.ensure_future(one(at, query)))
    await asyncio.gather(*tasks)
    return tally
