"""What a call of a function is expected to take: measured seconds, by how many ran together."""

from __future__ import annotations

from foreserve.core import Forecast, Length, Outcome, OutcomeKind
from foreserve.foresight.batch_seconds import WEIGHT, BatchSeconds

_NO_TOKENS = Length(mean=1.0, p50=1.0, p80=1.0, p95=1.0, source="batches")


class CallSeconds:
    """Learns from the calls that were done. A call is expected to run in a batch of the size that is usual of late."""

    def __init__(self) -> None:
        self._seconds = BatchSeconds()
        self._size = 1.0

    def settled(self, outcome: Outcome) -> None:
        """How a call ended."""
        if outcome.kind is not OutcomeKind.DONE or outcome.started is None:
            return
        size = len(outcome.beside) + 1
        self._size += WEIGHT / size * (size - self._size)  # each batch once, however many tell of it
        self._seconds.learn(size, max(0.0, outcome.ended - outcome.started))

    def forecast(self) -> Forecast | None:
        """Of a call that comes now; `None` while none has been done."""
        seconds, least = self._seconds.estimate(max(1, round(self._size))), self._seconds.least(1)
        if seconds is None or least is None:
            return None
        return Forecast(
            input_tokens=0, output=_NO_TOKENS, most_tokens=0, seconds=seconds, least_seconds=min(least, seconds)
        )
