"""The pace of a simulated replica: that of a small model on one core of a small machine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SLOTS = 16
PREFILL_S = 0.00025
DECODE_S, DECODE_S_PER_SEQ = 0.012, 0.0011
TPOT_S = DECODE_S + (SLOTS - 1) * DECODE_S_PER_SEQ
"""Seconds a token, for each of `SLOTS` sequences."""


def saturation(lengths: Iterable[tuple[int, int]]) -> float:
    """Requests a second that one replica can serve with all slots in use, of tokens of prompt and of answer."""
    prompt, answer = np.mean(list(lengths), axis=0)
    return float(1.0 / (prompt * PREFILL_S + answer * TPOT_S / SLOTS))
