"""What is asked in the scheduling benchmarks: real prompts with the lengths that their answers really had.

`apps` is Magnus's six applications in equal parts, `conversations` the turns of chats, each with its history and after
the turns before it. Requests are drawn with a seed; those of training contexts and held-out ones never mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import msgspec
import numpy as np

from benchmarks import pairs, replay
from benchmarks.pairs import Message
from foreserve.loadgen.prompts import Prompt
from foreserve.services.llm import LLM

ANSWER_CAP: Final = 400
"""Requests with longer answers are left out, so that a run ends within minutes on one core."""

PROMPT_CAP: Final = 700
"""Requests with longer prompts are left out, for the same reason."""

HELD_OUT: Final = 0.3
ACTIVE_CHATS: Final = 24
"""Conversations that go on at once, each at its own turn."""

TENANTS: Final = ("ada", "bob", "cyd", "flood")
SHARES: Final = (0.2, 0.2, 0.2, 0.4)
"""Three tenants send alike, one twice as much."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request: what is sent, and its true lengths in tokens, the prompt's with the model's template."""

    messages: list[Message]
    response: str
    key: str
    prompt_tokens: int
    output_tokens: int
    tenant: str

    def as_prompt(self) -> Prompt:
        """For the load generator."""
        return Prompt(messages=self.messages, tenant=self.tenant)


class Mix(msgspec.Struct, frozen=True):
    """A source of requests: those to learn from and those to measure with."""

    name: str
    train: list[Ask]
    held_out: list[Ask]
    shuffled: bool

    def draw(self, count: int, seed: int) -> list[Ask]:
        """Held-out requests, the same for the same seed, each with a tenant of its own drawing."""
        return _draw(self.held_out, count, seed, self.shuffled)

    def draw_train(self, count: int, seed: int) -> list[Ask]:
        """Others, for warming up and for measuring the machine."""
        return _draw(self.train, count, seed, self.shuffled)

    def truths(self) -> dict[str, int]:
        """The true length of every request, by its key."""
        return {ask.key: ask.output_tokens for ask in (*self.train, *self.held_out)}


def _draw(asks: Sequence[Ask], count: int, seed: int, shuffled: bool) -> list[Ask]:
    rng = np.random.default_rng([seed, 0x5EED])
    if shuffled:
        order = rng.permutation(len(asks))[:count]
    else:  # a stretch of it, since turns follow each other
        start = int(rng.integers(0, max(1, len(asks) - count)))
        order = np.arange(start, min(start + count, len(asks)))
    tenants = rng.choice(len(TENANTS), size=len(order), p=SHARES)
    return [
        msgspec.structs.replace(asks[index], tenant=TENANTS[tenant])
        for index, tenant in zip(order, tenants, strict=True)
    ]


def apps(train: int = 3000, held_out: int = 2000) -> Mix:
    """The six applications; each tells its instruction as the system message."""
    parts = pairs.split(pairs.pairs("apps"), HELD_OUT, seed=0)
    sides: list[list[Ask]] = []
    for found, count in zip(parts, (train, held_out), strict=True):
        chats = [_said(pair.instruction, pair.text) for pair in found[:count]]
        sides.append(_asks(chats, [pair.response for pair in found[:count]]))
    return _mix("apps", *sides, shuffled=True)


def conversations(chats: int = 1000) -> Mix:
    """Turns of chats with their history, the turns of `ACTIVE_CHATS` chats mixed, each chat's in their order."""
    found = pairs.conversations(chats)
    middle = int(len(found) * (1 - HELD_OUT))
    sides: list[list[Ask]] = []
    for part, seed in ((found[:middle], 1), (found[middle:], 2)):
        turns = _mixed(part, seed)
        sides.append(_asks([chat[:-1] for chat in turns], [chat[-1]["content"] for chat in turns]))
    return _mix("conversations", *sides, shuffled=False)


MIXES: Final[dict[str, Callable[[], Mix]]] = {"apps": apps, "conversations": conversations}


def _mix(name: str, train: Sequence[Ask], held_out: list[Ask], *, shuffled: bool) -> Mix:
    """Greetings begin many a chat; what is held out is not learned from."""
    kept = {ask.key for ask in held_out}
    return Mix(name, [ask for ask in train if ask.key not in kept], held_out, shuffled)


def _said(instruction: str, text: str) -> list[Message]:
    return [{"role": "system", "content": instruction}, {"role": "user", "content": text}]


def _mixed(chats: Sequence[list[Message]], seed: int) -> list[list[Message]]:
    """Each item is a chat up to one answer, that answer last."""
    rng = np.random.default_rng(seed)
    waiting = list(chats)
    active: list[tuple[list[Message], int]] = []
    turns: list[list[Message]] = []
    while waiting or active:
        while waiting and len(active) < ACTIVE_CHATS:
            active.append((waiting.pop(), 2))
        place = int(rng.integers(len(active)))
        chat, upto = active.pop(place)
        turns.append(chat[:upto])
        if upto + 2 <= len(chat):
            active.append((chat, upto + 2))
    return turns


def _asks(chats: Sequence[list[Message]], responses: Sequence[str]) -> list[Ask]:
    """Those within the caps, each prompt once: a prompt has one true length."""
    text = _model().text
    asks: dict[str, Ask] = {}
    for messages, response, tokens in zip(chats, responses, pairs.lengths(responses), strict=True):
        if tokens > ANSWER_CAP or sum(len(message["content"]) for message in messages) > 8 * PROMPT_CAP:
            continue
        ids = text.conversation(messages, 0.0)
        if len(ids) <= PROMPT_CAP:
            key = replay.key(ids)
            ask = Ask(
                messages=messages,
                response=response,
                key=key,
                prompt_tokens=len(ids),
                output_tokens=tokens,
                tenant="ada",
            )
            asks.setdefault(key, ask)
    return list(asks.values())


@cache
def _model() -> LLM:
    model = LLM("smollm2", engine="openvino")
    model.prepare()
    return model
