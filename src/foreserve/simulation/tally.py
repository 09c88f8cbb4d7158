"""Requests counted as they end, those of one tenant of a service at a time: outcomes, tokens, latencies."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from foreserve.core import Outcome, OutcomeKind
from foreserve.simulation import figures
from foreserve.simulation.clients import is_retry
from foreserve.simulation.histogram import Histogram
from foreserve.traces.histogram import OTHERS, largest_first

MOST_NAMES: Final = 64
"""Tenants and reasons that are counted by name; the rest of them are `OTHERS`."""

CURVE: Final = 160
"""Points of a distribution's curve, about."""

_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")


class Tally:
    """Counts of some requests; see `figures.Tally`."""

    __slots__ = (
        "again", "cached_tokens", "codes", "e2e", "good", "outcomes", "output_tokens", "prompt_tokens", "reasons",
        "retries", "slot_s", "tpot", "ttft", "wait",
    )  # fmt: skip

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.good = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.cached_tokens = 0
        self.again = 0
        self.retries = 0
        self.slot_s = 0.0
        self.ttft, self.tpot, self.e2e, self.wait = Histogram(), Histogram(), Histogram(), Histogram()

    def ended(self, outcome: Outcome, deadline: float | None) -> None:
        self.outcomes[outcome.kind.value] += 1
        if outcome.attempt:
            self.again += 1
        if is_retry(outcome.id):
            self.retries += 1
        if outcome.started is not None:
            self.slot_s += outcome.ended - outcome.started
            self.wait.add(outcome.started - outcome.arrival)
        if outcome.kind is not OutcomeKind.DONE:
            self.codes[outcome.code] += 1
            reason = _NUMBER.sub("N", outcome.reason)
            self.reasons[reason if reason in self.reasons or len(self.reasons) < MOST_NAMES else OTHERS] += 1
            return
        if deadline is None or outcome.ended <= deadline:
            self.good += 1
        tokens = int(outcome.usage.get("output_tokens", 0))
        self.prompt_tokens += int(outcome.usage.get("prompt_tokens", 0))
        self.output_tokens += tokens
        self.cached_tokens += int(outcome.usage.get("cached_tokens", 0))
        self.e2e.add(outcome.ended - outcome.arrival)
        if outcome.first is not None:
            self.ttft.add(outcome.first - outcome.arrival)
            if tokens > 1:
                self.tpot.add((outcome.ended - outcome.first) / (tokens - 1))

    def merge(self, other: Tally) -> None:
        """As if all had been counted here."""
        for mine, theirs in (
            (self.outcomes, other.outcomes), (self.codes, other.codes), (self.reasons, other.reasons),
        ):  # fmt: skip
            mine.update(theirs)
        for name in ("good", "prompt_tokens", "output_tokens", "cached_tokens", "again", "retries", "slot_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("ttft", "tpot", "e2e", "wait"):
            getattr(self, name).merge(getattr(other, name))

    def figures(self, *, curve: int = 0) -> figures.Tally:
        """As plain data, counts from the largest down."""
        return figures.Tally(
            requests=self.outcomes.total() - self.retries,
            retries=self.retries,
            outcomes={kind.value: self.outcomes[kind.value] for kind in OutcomeKind},
            codes=largest_first(self.codes),
            reasons=largest_first(self.reasons),
            good=self.good,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            again=self.again,
            slot_s=self.slot_s,
            ttft=self.ttft.distribution(curve=curve),
            tpot=self.tpot.distribution(curve=curve),
            e2e=self.e2e.distribution(curve=curve),
            wait=self.wait.distribution(curve=curve),
        )
