"""How an encoder's answer is read: one chunk is all of it."""

from __future__ import annotations

import msgspec

from foreserve.core import Chunk, Work
from foreserve.elastic.payload import Encode, Encoding, Vector
from foreserve.ports import Decoded


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """The event of a request: its encoding, and the task that it is of."""

    encoding: Encoding
    task: str


class Reading:
    """The decoder of one request."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def feed(self, chunk: Chunk) -> Decoded:
        if chunk.data is None:
            return Decoded()
        vector = chunk.data if isinstance(chunk.data, Vector) else msgspec.convert(chunk.data, Vector)
        payload: Encode = self._work.payload
        encoding = Encoding(
            data=vector.data,
            setting=vector.setting,
            expected=(self._work.plans or {}).get(vector.setting, 0.0),
            tokens=len(payload.ids),
        )
        return Decoded(events=(Answered(encoding=encoding, task=payload.task),))

    def usage(self) -> dict[str, float]:
        return {"prompt_tokens": float(len(self._work.payload.ids))}
