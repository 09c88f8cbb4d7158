"""One request inside a simulated engine: what it will put out and how far it has come."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

Ending = Literal["stop", "length", "cancelled", "memory"]


class Answering:
    """Lengths in tokens. Its owner keeps what it likes in `work`; the rest belongs to the step model that runs it.

    `output` is how many tokens it makes; `every` is how many of them make a chunk after the first (`None`: all the
    rest). `units` are hashes of its prompt's first parts, `unit` tokens each, each of the prompt up to there. It joins
    no step that begins before `ready` (seconds).
    """

    __slots__ = (
        "cached", "ended", "every", "given", "held", "id", "limited", "made", "next", "number", "output",
        "place", "prompt", "ready", "reserved", "sent", "todo", "unit", "units", "work", "zero",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        prompt: int,
        output: int,
        *,
        limited: bool = False,
        every: int | None = None,
        units: tuple[int, ...] = (),
        unit: int = 0,
        ready: float = 0.0,
        work: Any = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.output = output
        self.limited = limited
        self.every = every
        self.units = units
        self.unit = unit
        self.ready = ready
        self.work = work
        self.number = 0
        """Chunks that its owner has sent."""
        self.sent = 0
        """Tokens in them: behind `given` where several moments are handed on at once."""
        self.given = 0
        """Tokens that have been put out."""
        self.next = 1
        """The token that completes the next chunk."""
        self.made = 0
        """Tokens made before it last joined: those of before it was preempted."""
        self.zero: int | None = None
        """While it decodes: the step at which it would have made nothing, so that it has made `step - zero`."""
        self.todo = 0
        """Tokens of its prompt (and of what it has made, when preempted) still to be computed."""
        self.reserved = 0
        """KV blocks set aside for it while it is prefilled."""
        self.held = 0
        """How many of its units it shares with the prefix cache."""
        self.cached: int | None = None
        """Tokens of its prompt that were in the prefix cache when it first began."""
        self.place = 0
        """The order in which it joined those that run, the last time; 0: it does not run."""
        self.ended = False

    def reached(self, step: int) -> int:
        """How many tokens it has made by a decode step."""
        return self.made if self.zero is None else step - self.zero

    def after(self, given: int) -> int:
        """The token that completes the chunk after token `given`."""
        return self.output if self.every is None else min(self.output, given + self.every)

    @property
    def end(self) -> Ending:
        """How it ends when it has made all."""
        return "length" if self.limited else "stop"


Emission = tuple[Answering, int, Ending | None]
"""Who puts out how many new tokens, and how it ends, if it does."""


def draw(seed: int, request_id: str, low: int, high: int) -> int:
    """A length in [low, high], the same for the same seed and id in every process."""
    digest = hashlib.blake2b(f"{seed}/{request_id}".encode(), digest_size=8).digest()
    return low + int.from_bytes(digest, "big") % (high - low + 1)
