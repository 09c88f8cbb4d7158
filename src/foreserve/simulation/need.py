"""How much of a replica each request of a trace asks for, by its engine's profile: the load in units of replicas.

A lower bound, and the measure against which replicas are held: at full batches, without padding, waste or waiting.
"""

from __future__ import annotations

from typing import Final

from foreserve.engines.profile import EngineProfile
from foreserve.engines.simulated_cost import DecodeCost, PrefillCost

_BLOCK: Final = 16
"""Tokens of context that are alike in the cost of a token."""


class Need:
    """Seconds of one replica that a request takes, when the replica always runs as many at once as it can hold.

    Its prompt is computed alone; each token of its answer costs its share of a full decode step. As many run as there
    are slots, or as the KV cache has room for requests of this length.
    """

    def __init__(self, profile: EngineProfile) -> None:
        self._profile = profile
        self._prefill = PrefillCost(profile.prefill)
        self._decode = DecodeCost(profile.decode)
        self._token_s: dict[int, float] = {}

    def seconds(self, input_tokens: int, output_tokens: int) -> float:
        """Of one request with these lengths, in tokens."""
        held = (input_tokens + output_tokens // 2) // _BLOCK
        token_s = self._token_s.get(held)
        if token_s is None:
            token_s = self._token_s[held] = _token_s(self._profile, self._decode, held * _BLOCK)
        return self._prefill.at(input_tokens, 0.0) + output_tokens * token_s


def _token_s(profile: EngineProfile, decode: DecodeCost, context: int) -> float:
    """What one token costs among as many others of the same context as fit."""
    most = max(1, min(profile.slots, profile.kv_tokens // max(context, 1)))
    return decode.line(most).at(context) / most
