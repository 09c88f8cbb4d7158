"""Read-only weights as an engine sees them: arrays, tensors, or bound to a module, without a copy."""

from __future__ import annotations

from typing import Any


class Weights:
    """Wraps weights that are on their way."""

    def __init__(self, pending: Any) -> None:
        self._pending = pending
