"""How long each answer of a simulation will really be: told by the trace to the engine, past all that decides."""

from __future__ import annotations


class Oracle:
    """Implements `TrueLengths`. Holds what is on its way alone: forget a request when it has ended."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def tell(self, request_id: str, output_tokens: int) -> None:
        """A request is about to be submitted."""
        self._tokens[request_id] = max(1, output_tokens)

    def forget(self, request_id: str) -> None:
        """It has ended. Unknown ids are ignored."""
        self._tokens.pop(request_id, None)

    def output_tokens(self, request_id: str) -> int:
        """See `TrueLengths`."""
        return self._tokens[request_id]

    def __len__(self) -> int:
        return len(self._tokens)
