"""Counts the tokens of an event stream on the quiet: the client reads it as if only it had asked for something."""

from __future__ import annotations

import re

from foreserve.engines.events import data_of, told
from foreserve.engines.json_fields import fields

_FINISHES = re.compile(rb'"finish_reason": ?"')
_FINGERPRINT = "system_fingerprint"


class Counting:
    """Passes events on and notes what they tell in `usage`, and in `cut` whether an answer ended at its limit.

    With `ours`, the usage was asked for by us alone: the event that tells nothing else is taken out. vLLM then writes
    its fingerprint into that event instead of into the one that finishes the answer, so it is put back there; for that
    the finishing event waits for its successor, which comes at once.
    """

    def __init__(self, ours: bool) -> None:
        self.usage: dict[str, float] = {}
        self.cut = False
        self._ours = ours
        self._held = b""

    def feed(self, events: list[bytes]) -> bytes:
        """What the client gets of `events`."""
        out = []
        for event in events:
            said = told(event)
            if said is not None:
                self.usage.update(said.usage)
                self.cut = self.cut or said.cut
                if self._ours and said.apart:
                    self._held = _stamped(self._held, event)
                    continue
            out.append(self.rest())
            if self._ours and _FINISHES.search(event):
                self._held = event
            else:
                out.append(event)
        return b"".join(out)

    def rest(self) -> bytes:
        """What still waits, when nothing more comes."""
        rest, self._held = self._held, b""
        return rest


def _stamped(finishing: bytes, usage: bytes) -> bytes:
    """`finishing` with the fingerprint of the `usage` event, if it has none of its own."""
    stamp = (fields(data_of(usage)) or {}).get(_FINGERPRINT)
    end = finishing.rfind(b"}")
    if stamp is None or end < 0 or _FINGERPRINT.encode() in finishing:
        return finishing
    return finishing[:end] + f',"{_FINGERPRINT}":'.encode() + bytes(stamp) + finishing[end:]
