"""What a simulation has found, as plain data for tables, reports and JSON. Equal runs give equal bytes."""

from __future__ import annotations

from typing import Any

import msgspec

from foreserve.simulation.histogram import Distribution


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Some requests, those of a service, a tenant or all, and how they went. Latencies are seconds, of what was done.

    `requests` are those of the trace; `retries`, which clients sent again under faults, are counted apart, and their
    outcomes and latencies are among the others. `outcomes` counts by kind, `codes` by the error's code, `reasons` by
    its words, with numbers left out. `good` were done within their deadline, or had none. Tokens are those of requests
    that were done; `slot_s` is the time that requests spent on replicas, whatever came of them.
    """

    requests: int
    retries: int
    outcomes: dict[str, int]
    codes: dict[str, int]
    reasons: dict[str, int]
    good: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    again: int
    slot_s: float
    ttft: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None
    wait: Distribution | None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A service's course, a value for each window of `width_s` seconds: rates a second, means, most waiting.

    Latencies are of requests that came in the window; `None` is where none was done. `need` is how many replicas what
    came would keep busy at full batches (see `need.Need`). `wanted` is how many its scaling asked for and `foreseen`
    the need that it foresaw for a start later; `None` where it decided or foresaw nothing.
    """

    width_s: float
    arrivals: list[float]
    input_tokens: list[float]
    output_tokens: list[float]
    tokens_out: list[float]
    need: list[float]
    ended: dict[str, list[float]]
    waiting: list[float | None]
    most_waiting: list[int]
    running: list[float | None]
    ready: list[float | None]
    replicas: list[float | None]
    wanted: list[float | None]
    foreseen: list[float | None]
    slots_used: list[float | None]
    kv_used: list[float | None]
    ttft_p50: list[float | None]
    ttft_p99: list[float | None]
    e2e_p50: list[float | None]
    e2e_p99: list[float | None]


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of scaling that changed how many replicas there are, `at` (seconds since the trace began)."""

    at: float
    active: int
    wanted: int
    granted: int
    why: str
    figures: dict[str, float] = {}


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """How the number of replicas followed the load.

    `starts` and `stops` are of replicas, also of those that were lost and started anew. `changes` are decisions that
    changed the number, by which `added` were asked for and `taken` away; `decisions` has the first thousand of them.
    """

    starts: int
    stops: int
    changes: int
    added: int
    taken: int
    decisions: list[Decision]


class ServiceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One service. Shares are means over its ready replicas and the whole run; `None` is where nothing tells.

    `busy` is the share of time in which a replica had anything to do, `slots_used` and `kv_used` how full it was.
    `need_replicas` is the offered load in replicas at full batches, over the span of the trace. `scaling` is there
    where the number of replicas may change.
    """

    tally: Tally
    tenants: dict[str, Tally]
    series: Series
    replica_hours: float
    busy: float | None
    slots_used: float | None
    kv_used: float | None
    need_replicas: float
    most_waiting: int
    preemptions: int
    scaling: Scaling | None = None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What replicas cost, in the currency of `price`, which is that of a replica-hour. `None`: nothing was done."""

    price: float
    total: float
    per_1000_done: float | None
    per_million_output_tokens: float | None


def cost(price: float, replica_hours: float, tally: Tally) -> Cost:
    """Of so many replica-hours, and of what was done in them."""
    total = price * replica_hours
    done, tokens = tally.outcomes["done"], tally.output_tokens
    return Cost(
        price=price,
        total=total,
        per_1000_done=1e3 * total / done if done else None,
        per_million_output_tokens=1e6 * total / tokens if tokens else None,
    )


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A run, in simulated seconds. `start_s` is how long the app took to start, before the trace began.

    `span_s` is from there to the last arrival, `ended_s` until the last request ended. `settings` has those of each
    service in the app file's words, `notes` what a reader should know of the run, `findings` what did not hold in a run
    under faults (see `checks`). `cost` is there where a price is.
    """

    name: str
    trace: str
    epoch: float
    seed: int
    start_s: float
    span_s: float
    ended_s: float
    settings: dict[str, Any]
    total: Tally
    services: dict[str, ServiceFigures]
    notes: list[str] = []
    findings: list[str] = []
    cost: Cost | None = None

    def priced(self, price: float) -> Result:
        """With what its replicas cost at this price of a replica-hour."""
        hours = sum(each.replica_hours for each in self.services.values())
        return msgspec.structs.replace(self, cost=cost(price, hours, self.total))

    def goodput_per_s(self) -> float:
        """Good requests a second, over the time until the last has ended."""
        return self.total.good / self.ended_s if self.ended_s else 0.0
