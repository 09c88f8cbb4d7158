"""In a whole simulation nobody who decides or predicts is handed anything from which a true length can be reached.

`tests/dispatch/test_boundary.py` shows the same of the types alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from foreserve import wiring
from foreserve.app import App
from foreserve.core import Outcome, Request
from foreserve.dispatch.rooms import Shown
from foreserve.engines.generation import Sized
from foreserve.engines.profile import linear
from foreserve.foresight.length_predictor import Predictor
from foreserve.services.foreseen import Foreseen
from foreserve.services.llm import LLM
from foreserve.simulation.checks import reachable
from foreserve.simulation.clock import run
from foreserve.simulation.drive import Drive
from foreserve.simulation.launcher import SimulatedLauncher
from foreserve.simulation.oracle import Oracle
from foreserve.simulation.twin import Twin
from foreserve.traces.row import TraceRow

FIRST = 100_003
"""True lengths are this and more, each its own: a number that means nothing else in the run."""


class Secret(int):
    """A true length."""


class Spy:
    """Looks through everything that is handed over for the length of a request that has not ended."""

    def __init__(self) -> None:
        self.open: dict[str, int] = {}
        self.leaks: list[str] = []
        self.by_replica: list[str] = []
        self.calls: dict[str, int] = {}

    def on(self, owner: Any, name: str) -> None:
        """Look at what is given to a method of an object, or of a class."""
        inner: Callable[..., Any] = getattr(owner, name)
        where = f"{owner.__name__ if isinstance(owner, type) else type(owner).__name__}.{name}"

        def spied(*args: Any, **words: Any) -> Any:
            self.calls[where] = self.calls.get(where, 0) + 1
            # A class is spied on as a whole: what an object of it is, is not handed to it.
            for outcome in args:
                if isinstance(outcome, Outcome):  # it has ended, and its length is known from now on
                    self.open.pop(outcome.id, None)
            for given in (*args[isinstance(owner, type) :], *words.values()):
                self.look(where, given)
            return inner(*args, **words)

        setattr(owner, name, spied)

    def look(self, where: str, given: Any) -> None:
        """Find numbers, and words with numbers in them, that are somebody's true length.

        Of what names requests that are theirs; a forecast of one may happen to be the length of another.
        """
        within = list(given) if isinstance(given, Shown) else None  # what is seen of it is seen when it is asked for
        found = list(reachable([given, within], (int, float, str, bytes)))
        named = {one for one in found if isinstance(one, str) and one in self.open}
        lengths = {self.open[one] for one in named or self.open}
        for one in found:
            told = {float(one)} if isinstance(one, (int, float)) else _numbers(one)
            if isinstance(one, Secret) or told & lengths:
                self.leaks.append(f"{where} can reach {one!r}")


def _numbers(text: str | bytes) -> set[float]:
    plain = text.decode("latin-1") if isinstance(text, bytes) else text
    return {float(digits) for digits in re.findall(r"\d{4,12}", plain)}


def rows(count: int) -> Iterator[TraceRow]:
    draw, at = random.Random(1), 0.0
    for number in range(count):
        at += draw.expovariate(8.0)
        yield TraceRow(
            arrival=at,
            input_tokens=draw.randrange(1, 900),
            output_tokens=Secret(FIRST + 1009 * number),
            most_tokens=None if number % 2 else 900_000,
            tenant=f"t{number % 3}",
            deadline_s=draw.uniform(2, 40) if number % 3 else None,
            app="assistant" if number % 2 else "summary",
        )


def spied(policy: str, placement: str, kind: type[Twin] = Twin, count: int = 230) -> Spy:
    """A simulation in which all that decide and predict are spied on."""
    spy = Spy()
    deciders = ("add", "remove", "pick", "settled", "ahead", "place", "rank", "admit")

    def watched(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            part = make(*args)
            for name in deciders:
                if hasattr(part, name):
                    spy.on(part, name)
            return part

        return made

    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_policy", "make_placement", "make_admission"):
            patch.setattr(wiring, name, watched(getattr(wiring, name)))
        for name in ("predict_features", "learn_features"):
            patch.setattr(Predictor, name, getattr(Predictor, name))
            spy.on(Predictor, name)
        run(main(spy, policy, placement, kind, count))
    return spy


async def main(spy: Spy, policy: str, placement: str, kind: type[Twin], count: int) -> None:
    oracle = Oracle()
    profile = linear(
        slots=4,
        kv_tokens=900_000,
        context_tokens=800_000,
        prefill_s_per_token=1e-6,
        decode_s=1e-5,
        decode_s_per_seq=1e-6,
        batching="static" if policy in STATIC else "continuous",
    )
    settings = {"policy": policy, "placement": placement, "replicas": 2, "queue": {"max_wait_s": 60.0}}
    twin = kind("chat", LLM("simulated", **settings), profile, oracle)
    for name in ("about", "price", "settled"):
        spy.on(twin.foreseer, name)
    for name in ("price", "settled", "decoder", "events_bound"):
        spy.on(twin, name)
    running = App(chat=twin, state={"history": False}).run(SimulatedLauncher())
    running.observers.append(lambda outcome: spy.open.pop(outcome.id, None))
    await running.start()

    def coming(request: Request, row: TraceRow) -> None:
        spy.open[request.id] = row.output_tokens
        if request.id == "r15":  # engines run by now, and from a replica they could be reached
            told, spy.leaks = spy.leaks, []
            spy.look("a replica", running.services["chat"].replicas.all[0])
            spy.by_replica, spy.leaks = spy.leaks, told

    await Drive(running, {"chat": twin}, oracle, block_tokens=512, before=coming).play(rows(count))
    running.ledger.check(idle=True)
    await running.stop(0.0)


STATIC = ("magnus", "fixed")


@pytest.mark.parametrize(
    ("policy", "placement"),
    [
        ("hrrn", "least_requests"),
        ("hrrn", "anticipated"),
        ("fcfs", "round_robin"),
        ("magnus", "round_robin"),
        ("fixed", "least_requests"),
    ],
)
def test_no_true_length_can_be_reached_from_what_is_handed_over(policy: str, placement: str):
    spy = spied(policy, placement)
    assert not spy.leaks, spy.leaks[:5]
    by_method = {name.partition(".")[2]: calls for name, calls in spy.calls.items()}
    assert {
        "add",
        "pick",
        "settled",
        "admit",
        "price",
        "about",
        "decoder",
        "predict_features",
        "learn_features",
    } <= set(by_method)
    assert ("rank" in by_method) is (placement != "round_robin")
    assert ("place" in by_method) is (placement != "least_requests")
    assert by_method["pick"] > 50
    assert spy.by_replica, "the lengths are there to be found, where nobody who decides is led to"


class InThePayload(Twin):
    """Tells the engine through the payload, where the dispatcher and the kind have it too."""

    def payload(self, row: TraceRow, block_tokens: int) -> Sized:
        return msgspec.structs.replace(super().payload(row, block_tokens), prefix=(row.output_tokens,))


class InTheForecast(Twin):
    """Foresees what will be."""

    async def about(self, rows: list[TraceRow], payloads: list[Sized]) -> list[Foreseen]:
        return [
            msgspec.structs.replace(each, length=msgspec.structs.replace(each.length, mean=float(row.output_tokens)))
            for each, row in zip(await super().about(rows, payloads), rows, strict=True)
        ]


class InTheLimit(Twin):
    """Asks for as many tokens as there will be."""

    def payload(self, row: TraceRow, block_tokens: int) -> Sized:
        asked = super().payload(row, block_tokens)
        return msgspec.structs.replace(asked, max_tokens=min(int(row.output_tokens), asked.max_tokens))


class InTheRow(Twin):
    """Hands over the whole row, in a block of memory that the collector does not look into."""

    async def about(self, rows: list[TraceRow], payloads: list[Sized]) -> list[Foreseen]:
        found = await super().about(rows, payloads)
        return [WithRow(each.prompt_tokens, each.most, each.length, row) for each, row in zip(found, rows, strict=True)]


class WithRow(Foreseen, frozen=True, eq=False):
    """As the real one, with the row where features belong."""

    def learned_from(self) -> None:
        return None


@pytest.mark.parametrize("leaky", [InThePayload, InTheForecast, InTheLimit, InTheRow])
def test_a_twin_that_leaks_is_found(leaky: type[Twin]):
    assert spied("hrrn", "least_requests", leaky, count=20).leaks
