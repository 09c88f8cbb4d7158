"""How long will the answer be? What is asked of a length predictor, and what it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from foreserve.core import Length


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request when it comes. Its true length is not knowable here.

    `instruction` is the application-level text (system prompt, task), the same for many requests; `text` the user's own
    input. `input_tokens` is the length of that input, counted or estimated, `prompt_tokens` that of all that the model
    reads; `most` the request's `max_tokens`.
    """

    instruction: str
    text: str
    input_tokens: int
    prompt_tokens: int
    most: int
    tenant: str = "default"


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How long the answer was. `censored`: it was cut at `tokens`, so that it would have been at least that long."""

    tokens: int
    censored: bool = False


class LengthPredictor(Protocol):
    """Predicts many at once and learns on line. Not thread-safe: one thread calls it."""

    def predict(self, batch: Sequence[Asked]) -> list[Length]:
        """One for each, in order; every quantile is within 1 and the request's own `most`."""
        ...

    def learn(self, asked: Asked, ended: Ended) -> None:
        """A request has ended; takes microseconds, whatever has to be trained is trained elsewhere."""
        ...
