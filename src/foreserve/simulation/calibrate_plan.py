"""How much is measured of an engine: the points of its tables and the time that each part may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from foreserve.clock import precise
from foreserve.core import EngineInfo
from foreserve.errors import ConfigError

FULL_S: Final = 120.0
QUICK_S: Final = 25.0
LEAST_S: Final = 5.0
"""Seconds of measuring, beside the starts."""

Tell = Callable[[float, str], None]
"""`tell(done, what)`: the share of the measuring that is done (0 to 1), and what is measured now."""

_SMALL: Final = 16
_LONGEST: Final = 4096
_SHARES: Final = {"prefill": 0.3, "context": 0.2, "decode": 0.35, "mixing": 0.15, "batches": 1.0}


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """What a measurement may cost: starts of the engine, seconds after them, and how fine its tables are."""

    starts: int = 2
    seconds: float = FULL_S
    fine: bool = True

    def __post_init__(self) -> None:
        if self.starts < 1 or self.seconds < LEAST_S:
            raise ConfigError(f"a measurement takes at least one start and {LEAST_S:g} seconds")

    @classmethod
    def chosen(cls, quick: bool, seconds: float | None) -> Effort:
        """By the words of the command line. Raises ConfigError."""
        return cls(seconds=seconds if seconds is not None else QUICK_S if quick else FULL_S, fine=not quick)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself and measuring has to heed. `budget`: tokens of a step; `None`: no chunks.

    `block`: tokens of a block of its KV cache.
    """

    slots: int
    kv_tokens: int
    context: int
    budget: int | None
    block: int = 1

    @classmethod
    def of(cls, info: EngineInfo) -> Limits:
        """Of a language model's engine."""
        slots = max(1, int(info.capacity["slots"]))
        context = int(info.facts.get("context_tokens", 2048))
        kv = int(info.capacity.get("kv_tokens", slots * context))
        budget = info.facts.get("max_batched_tokens")
        return cls(
            slots=slots,
            kv_tokens=kv,
            context=min(context, kv),
            budget=None if budget is None else int(budget),
            block=max(1, int(info.facts.get("block_tokens", 1))),
        )

    def prefill_tokens(self, fine: bool) -> list[int]:
        """Of one step: 1 and powers of two, up to the step's budget, or half the context where there is none."""
        most = min(self.budget or _LONGEST, self.context // 2)
        powers = [_SMALL << at for at in range(20) if _SMALL << at < most]
        return [1, *(powers if fine else powers[::2]), most]

    def before_tokens(self, fine: bool) -> list[int]:
        """Context before a step's prompt tokens."""
        step = self.budget or 512
        wanted = [step, 4 * step] if fine else [2 * step]
        return [before for before in wanted if before + 2 * step <= min(self.context, self.kv_tokens)]

    def sequences(self) -> list[int]:
        """That decode together: powers of two, and all."""
        return [*(1 << at for at in range(20) if 1 << at < self.slots), self.slots]

    def contexts(self, fine: bool) -> list[int]:
        """Held by each that decodes: what all slots can hold together, with room to grow.

        Several short ones: time grows faster with the first hundreds of tokens than with those after them.
        """
        room = min(self.context // 2, (self.kv_tokens * 3 // 4) // self.slots)
        wanted = (_SMALL, 128, 256, 512, 2048) if fine else (_SMALL, 128, 512)
        return [_SMALL, *(context for context in wanted[1:] if context <= room)] if room > _SMALL else [max(1, room)]

    def room(self, sequences: int, *, beside: int = 0) -> int:
        """Tokens that each of so many can hold at once, prompt and answer, with so many held `beside` them."""
        blocks = (self.kv_tokens - beside) // self.block - (beside > 0)
        return min(self.context, max(0, blocks) // sequences * self.block)

    def steps_to_begin(self, sequences: int, prompt: int) -> int | None:
        """Tokens that the first of so many has made, at most, when the last begins; `None`: it would never.

        Those that have begun get their token of each step before prompts do.
        """
        if self.budget is None:
            # Nobody knows whether others decode between two prompts.
            return min(sequences + 2, max(3, (self.room(sequences) - prompt) // 2))
        left, steps = sequences * prompt, 2
        while left > 0:
            free = self.budget - (sequences - -(-left // prompt))
            if free < 1 or steps > self.context:
                return None
            left -= free
            steps += 1
        return steps


class Rounds:
    """Goes over the points of one part again and again until its time is over: noise then meets all of them alike.

    At least `least` rounds, at most `most`.
    """

    def __init__(self, seconds: float, least: int, most: int, told: Callable[[float], None]) -> None:
        self._seconds = seconds
        self._least = least
        self._most = most
        self._told = told
        self._began = precise()
        self._done = 0

    def again(self) -> bool:
        """Whether to go over all of them once more: when about that much time is left."""
        spent = precise() - self._began
        each = spent / self._done if self._done else 0.0
        more = self._done < self._least or (self._done < self._most and spent + each <= self._seconds)
        self._done += 1
        self._told(min(1.0, spent / self._seconds) if more else 1.0)
        return more


class Parts:
    """The parts of a measurement one after the other, for the bar and the clock."""

    def __init__(self, effort: Effort, tell: Tell) -> None:
        self._effort = effort
        self._tell = tell
        self._before = 0.0

    def rounds(self, part: str, what: str, *, least: int, most: int) -> Rounds:
        """The next part. What an earlier one did not use is not given to it."""
        share, before = _SHARES[part], self._before
        self._before += share
        return Rounds(
            share * self._effort.seconds, least, most, lambda done: self._tell(min(1.0, before + share * done), what)
        )
