"""What is foreseen of one request, and the price that follows from it."""

from __future__ import annotations

import asyncio
import math
from typing import Final

import msgspec

from foreserve.core import Forecast, Length, Prefix, Price, Ramp
from foreserve.foresight.length import Asked
from foreserve.foresight.length_features import Features
from foreserve.foresight.service_time import RequestTime
from foreserve.services.meanings import Meaning, both

UNKNOWN_TOKENS: Final = 1024
"""The most room that is kept for an answer of which nothing is known: few come near their limit, which is the whole
context where a request names none. One that outgrows this makes a full engine preempt and recompute, which loses
nothing."""


class Foreseen(msgspec.Struct, frozen=True, eq=False):
    """What is known of a request before it is priced: lengths in tokens, and what was predicted from.

    `later`: its meaning, where that is found beside it to learn from. `prefix`: how it begins, where that is told.
    """

    prompt_tokens: int
    most: int
    length: Length
    features: Features | None = None
    later: asyncio.Future[Meaning | None] | None = None
    prefix: Prefix | None = None

    def learned_from(self) -> Features | None:
        """`features`, with the meaning where it was found by now."""
        later = self.later
        if self.features is None or later is None or not later.done() or later.cancelled():
            return self.features
        meaning = later.result()
        return self.features if meaning is None else msgspec.structs.replace(self.features, meaning=both(meaning))


def unforeseen(asked: Asked) -> Foreseen:
    """Where nothing is known an answer is taken to reach its limit."""
    limit = float(max(asked.most, 1))
    length = Length(mean=limit, p50=limit, p80=limit, p95=limit, source="limit")
    return Foreseen(asked.prompt_tokens, asked.most, length)


def tokens_cost(prompt_tokens: float, most: int | None, context: int | None = None) -> dict[str, float]:
    """What a request to a language model costs by its lengths alone, wherever its engine runs: a slot and KV room.

    `most` is the longest answer that is asked for; `None` is not known, and no room is kept. `context` (tokens) bounds
    prompt and answer together, where it is known.
    """
    cost = {"slots": 1.0}
    if most is not None:
        tokens = float(prompt_tokens + min(most, UNKNOWN_TOKENS))
        cost["kv_tokens"] = tokens if context is None else min(tokens, float(context))
    return cost


def priced(about: Foreseen, cost: dict[str, float], time: RequestTime, *, worst: bool, ramps: bool) -> Price:
    """`cost` with room for prompt and answer, and the forecast.

    `worst`: room for the longest answer that was asked for. Otherwise, with `ramps`, the replica looks ahead. Where
    nothing is known of the answer but its limit there is no forecast: policies then go by what others took.
    """
    length, prompt = about.length, about.prompt_tokens
    forecast = None
    if length.source != "limit":
        seconds = time.seconds(prompt, length.mean)
        forecast = Forecast(
            input_tokens=prompt,
            output=length,
            most_tokens=about.most,
            seconds=seconds,
            least_seconds=min(seconds, time.least_seconds(_few(length))),
        )
    steps = about.most if worst else _room(length)
    ramp = Ramp(resource="kv_tokens", base=prompt, steps=steps, most=prompt + about.most)
    return Price(
        cost={**cost, "kv_tokens": float(prompt + steps)}, forecast=forecast, ramp=ramp if ramps and not worst else None
    )


def _room(length: Length) -> int:
    """Tokens of room that are kept for an answer."""
    return min(math.ceil(length.p80), UNKNOWN_TOKENS) if length.source == "limit" else math.ceil(length.p80)


def _few(length: Length) -> float:
    """A length that nearly all reach: as far below p50 as p80 is above it, by ratio; at most half the mean."""
    return max(1.0, min(length.p50 * length.p50 / length.p80, length.mean / 2.0))
