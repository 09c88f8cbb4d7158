"""Requests whose answers have foreseeable lengths, and their outcomes, for tests of what learns from them."""

from __future__ import annotations

import numpy as np

from foreserve.core import FinishReason, Outcome, OutcomeKind, Price
from foreserve.foresight.length import Asked
from foreserve.services.foreseeing import Foreseer

TASKS = {"Translate into French.": 30.0, "Write an essay.": 150.0, "Explain it.": 60.0}
MANNERS = {"Briefly, please:": 1.0, "At great length, please:": 6.0}
WORDS = ("the", "river", "runs", "past", "a", "mill", "and", "over", "stones", "where", "children", "play", "until")


def asked(number: int, *, tenant: str = "ann", most: int = 2000) -> Asked:
    """The `number`-th request: one of three tasks, in one of two manners, about some words."""
    draw = np.random.default_rng(number)
    text = " ".join([_manner(number), *draw.choice(WORDS, 8)])
    return Asked(instruction=_task(number), text=text, input_tokens=12, prompt_tokens=30, most=most, tenant=tenant)


def length(number: int) -> int:
    """How long its answer is."""
    usual = TASKS[_task(number)] * MANNERS[_manner(number)]
    return max(1, int(np.random.default_rng(number + 10_000).normal(usual, usual / 10)))


def _task(number: int) -> str:
    return list(TASKS)[number % 3]


def _manner(number: int) -> str:
    return list(MANNERS)[number // 3 % 2]


def outcome(number: int, tokens: int, *, kind: OutcomeKind = OutcomeKind.DONE, tenant: str = "ann") -> Outcome:
    """How it ended: at 0.02 s a token."""
    done = kind is OutcomeKind.DONE
    finish: FinishReason | None = "stop" if done else None
    return Outcome(
        id=f"r{number}", service="chat", kind=kind, arrival=0.0, ended=0.1 + 0.02 * tokens, started=0.0, first=0.1,
        finish=finish, tenant=tenant, usage={"prompt_tokens": 30.0, "output_tokens": float(tokens)},
    )  # fmt: skip


async def priced(foreseer: Foreseer, number: int, *, tenant: str = "ann", ramps: bool = True) -> Price:
    """Its price, as it is found when it comes."""
    about = (await foreseer.about([asked(number, tenant=tenant)]))[0]
    return foreseer.price(f"r{number}", about, {"slots": 1.0}, ramps=ramps)


async def served(foreseer: Foreseer, numbers: range, *, tenant: str = "ann") -> None:
    """All of them, one after the other, to the end."""
    for number in numbers:
        await priced(foreseer, number, tenant=tenant)
        foreseer.settled(outcome(number, length(number), tenant=tenant))
