"""Nothing that decides knows how long an answer will really be: policies see no payload, and no field tells it.

`tests/simulation/test_boundary.py` shows it of a whole simulation: no true length is reached from what is handed over.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from foreserve import registry
from foreserve.core import Forecast, Length, Outcome, OutcomeKind, Ramp, Work
from foreserve.foresight.length import Asked
from foreserve.ports import Ahead, Pick, QueueView, Room, Unread, Wait
from foreserve.scaling import Capacity, LoadForecast, ReplicaView, ScalingView, Waiting

SLOTS, TOKENS = 4.0, 4000.0


class Looked(BaseException):
    """Somebody looked into a payload. No `except Exception` hides it."""


def _looked(*_: object) -> Any:
    raise Looked


class Sealed:
    """A payload that gives nothing away: not its type, its fields, its length, its equality or its text."""

    __getattribute__ = __setattr__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _looked
    __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __call__ = __index__ = __float__ = _looked
    __hash__ = __repr__ = __str__ = __format__ = _looked


def works() -> list[Work]:
    """Short and long, foreseen and not, with and without a deadline, and some that come back."""
    made = []
    for n in range(16):
        tokens = float(10 + 40 * n)
        length = Length(mean=tokens, p50=tokens, p80=1.5 * tokens, p95=2.0 * tokens, source="fast")
        forecast = Forecast(input_tokens=5 * n, output=length, most_tokens=2000, seconds=tokens / 50, least_seconds=0.1)
        foreseen = n % 4 != 3
        made.append(
            Work(
                id=f"w{n}",
                payload=Sealed(),
                cost={"slots": 1.0, "kv_tokens": 100.0 + n},
                arrival=0.1 * n,
                deadline=(1.0 + n) if n % 3 == 0 else None,
                utility=1.0 + n % 2,
                tenant=f"t{n % 3}",
                affinity=f"a{n % 2}",
                attempt=n % 5 == 4,
                forecast=forecast if foreseen else None,
                ramp=Ramp(resource="kv_tokens", base=5 * n, steps=100, most=2100) if foreseen else None,
            )
        )
    return made


def rooms(running: int = 0) -> list[Room]:
    free = {"slots": SLOTS - running, "kv_tokens": TOKENS}
    capacity = {"slots": SLOTS, "kv_tokens": TOKENS}
    return [Room(replica=f"r{n}", free=free, capacity=capacity, running=running) for n in range(2)]


def ended(work: Work) -> Outcome:
    usage = {"prompt_tokens": 10.0, "output_tokens": 20.0}
    return Outcome(
        id=work.id, service="s", kind=OutcomeKind.DONE, arrival=work.arrival, started=5.0, first=5.5, ended=6.0,
        usage=usage, tenant=work.tenant,
    )  # fmt: skip


def test_a_sealed_payload_tells_nothing() -> None:
    sealed = Sealed()
    for look in (bool, len, str, repr, hash, iter, dict, lambda it: it.prompt, lambda it: it == it):
        with pytest.raises(Looked):
            look(sealed)
    with pytest.raises(Looked):
        isinstance(sealed, Work)


@pytest.mark.parametrize("name", registry.names("batch policy"))
def test_no_batch_policy_looks_into_a_payload(name: str) -> None:
    policy = registry.load("batch policy", name, "test")()
    every = {work.id: work for work in works()}
    for work in every.values():
        if isinstance(policy, Ahead):
            assert policy.ahead(work, work.arrival) >= 0
        policy.add(work, work.arrival)
    policy.remove("w1")
    left = set(every) - {"w1"}
    now = 2.0
    for _ in range(10 * len(every)):
        match policy.pick(rooms(), now):
            case Pick(ids=ids):
                left -= set(ids)
                for request_id in ids:
                    policy.settled(ended(every[request_id]))
            case Wait(until=until):
                now = max(until, now)
        now += 0.5
    assert not left, "every work has been through the policy's hands"


@pytest.mark.parametrize("name", registry.names("placement"))
def test_no_placement_looks_into_a_payload(name: str) -> None:
    placement = registry.load("placement", name, "test")()
    assert placement.place(works(), rooms(1), 1.0) in {"r0", "r1"}


@pytest.mark.parametrize("waiting", [0, 3, 10])
@pytest.mark.parametrize("name", registry.names("admission"))
def test_no_admission_looks_into_a_payload(name: str, waiting: int) -> None:
    admission = registry.load("admission", name, "test")(max_waiting=10, max_wait_s=30.0)
    view = QueueView(
        waiting=waiting, running=8, slots=8.0, seconds_per_request=1.0, least_seconds=0.1, stretch=1.5,
        seconds_between_starts=0.2, ahead=1.0,
    )  # fmt: skip
    refused = [admission.admit(work, view, 2.0) is not None for work in works()]
    assert all(refused) or waiting < 10 or name == "always"


FIELDS: dict[type[msgspec.Struct], dict[str, str]] = {
    Asked: {
        "instruction": "the request's own words", "text": "the request's own words",
        "input_tokens": "counted in the prompt", "prompt_tokens": "counted in the prompt",
        "most": "the client's limit, far above most answers", "tenant": "who asks",
    },
    Forecast: {
        "input_tokens": "counted in the prompt", "output": "predicted when it came",
        "most_tokens": "the client's limit", "seconds": "predicted of the above", "least_seconds": "the same",
    },
    Room: {
        "replica": "a name", "free": "what is set aside is counted, by price", "capacity": "the engine's own",
        "running": "a count", "load": "measured of the engine, of all it runs together",
        "ahead": "the sum of predicted ramps", "tokens": "of prompts and predictions", "unread": "of prompts",
        "token_s": "measured of prompts that were read", "step_s": "measured of the engine's steps",
        "heard": "when it last said anything", "holds": "the engine's own",
    },
    Unread: {
        "tokens": "counted in prompts", "first": "counted in a prompt", "since": "when it was given",
        "count": "a count",
    },
    QueueView: {
        "waiting": "a count", "running": "a count", "slots": "of the replicas",
        "seconds_per_request": "of requests that have ended", "least_seconds": "of requests that have ended",
        "stretch": "of requests that have ended", "seconds_between_starts": "of starts that have been",
        "ahead": "the policy's own order", "own": "a count", "tenants": "a count", "cold_s": "of starts that have been",
    },
    Work: {
        "id": "a name", "payload": "opaque: the tests above", "cost": "the kind's price, from the forecast",
        "arrival": "when it came", "deadline": "the client's terms", "utility": "the client's terms",
        "tenant": "who asks", "parent": "a name", "root_arrival": "when its root came", "affinity": "a key",
        "depth": "how many steps of its pipeline lie before it",
        "after_s": "learned of steps of other requests that have ended",
        "role": "of pipelines", "sequence": "of pipelines", "idempotent": "of the kind", "attempt": "a count",
        "crowded": "attempts that ran out of memory: one was longer than foreseen, whoever it was",
        "credits": "of the reader", "forecast": "predicted when it came", "ramp": "predicted when it came",
        "prefix": "of the prompt", "plans": "what the kind offers, by held-out data",
    },
    ScalingView: {
        "service": "a name", "at": "the calendar", "replicas": "below", "waiting": "below",
        "recent": "what was foreseen of what came", "least": "a setting", "most": "a setting", "forecast": "below",
        "capacity": "below", "start_s": "of starts that have been", "idle_s": "of what has been",
    },
    ReplicaView: {
        "name": "a name", "phase": "of the fleet", "since": "of what has been", "running": "a count",
        "slots": "the engine's own", "load": "measured of the engine, of all it runs together",
        "ahead": "the sum of predicted ramps", "known": "when it was last heard",
    },
    Waiting: {
        "count": "a count", "oldest_s": "of what has been", "seconds": "predicted of each", "amounts": "by price",
        "predicted_wait_s": "predicted",
    },
    LoadForecast: {
        "at": "a time to come", "window_s": "a setting", "expected": "predicted of windows that are over",
        "low": "the same", "high": "the same", "level": "a setting", "model": "a name", "why": "words",
        "error": "of windows that are over", "judged_s": "their length",
    },
    Capacity: {
        "per_s": "of requests that have ended", "why": "words", "measured": "whether it was while replicas were full",
    },
}  # fmt: skip
"""All that those who predict and decide are told, and where each of it comes from: none from the answer to come.

A new field needs a line here that says why it does not tell how long the answer will be.
"""


@pytest.mark.parametrize("struct", FIELDS, ids=lambda struct: struct.__name__)
def test_no_field_tells_a_true_length(struct: type[msgspec.Struct]) -> None:
    assert set(struct.__struct_fields__) == set(FIELDS[struct])
