"""How much of a replica each request of a trace asks for, by its engine's profile: the load in units of replicas.

A lower bound, and the measure against which replicas are held: at full batches, without padding, waste or waiting.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from foreserve.engines.profile import EngineProfile

_POINTS: Final = 64


class Need:
    """Seconds of one replica that a request takes, when the replica always runs as many at once as it can hold.

    Its prompt is computed alone; each token of its answer costs its share of a full decode step. As many run as there
    are slots, or as the KV cache has room for requests of this length.
    """

    def __init__(self, profile: EngineProfile) -> None:
        most = max(profile.context_tokens, 2)
        self._lengths = sorted({round(most ** (step / _POINTS)) for step in range(_POINTS + 1)})
        self._prefill = [
            _at(profile.prefill.tokens, [row[0] for row in profile.prefill.seconds], n) for n in self._lengths
        ]
        self._token = [_token_s(profile, n) for n in self._lengths]

    def seconds(self, input_tokens: int, output_tokens: int) -> float:
        """Of one request with these lengths, in tokens."""
        held = input_tokens + output_tokens // 2
        return _at(self._lengths, self._prefill, input_tokens) + output_tokens * _at(self._lengths, self._token, held)


def _token_s(profile: EngineProfile, context: int) -> float:
    """What one token costs among as many others of the same context as fit."""
    table = profile.decode
    most = max(1, min(profile.slots, profile.kv_tokens // max(context, 1)))
    by_sequences = [_at(table.context, row, context) for row in table.seconds]
    return _at(table.sequences, by_sequences, most) / most


def _at(places: list[int], values: list[float], at: float) -> float:
    """Between places linearly; beyond them as between the last two, and never below 0."""
    if len(places) == 1:
        return values[0]
    right = min(max(bisect_left(places, at), 1), len(places) - 1)
    left = right - 1
    share = (at - places[left]) / (places[right] - places[left])
    return max(0.0, values[left] + share * (values[right] - values[left]))
