"""What a prediction is made from, without the text: small arrays that can be kept to learn from.

`Features` holds the length of the user's input, hashed words of instruction and input, a few shares, what the past of
this application and tenant was like when the request came, and in the full tier both texts' meanings.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Final, Literal, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.foresight.length import Asked
from foreserve.foresight.length_text import MOST_HASHES, SHARES, hashed

FeatureSet = Literal["uilo", "raft", "inst", "usin"]
"""Input length only; and which application; and the instruction's meaning; and the input's meaning and tenant (all)."""

MEANING: Final = 384
"""Numbers in the meaning of one text."""

PAST: Final = 6
"""Numbers of the past: of the application, then of the tenant, mean log length, mean log ratio to the input, weight."""

VERSION: Final = 1
_HEADER: Final = struct.Struct("<BBHHIIIQQ")
_FLOATS: Final = len(SHARES) + 1 + PAST
_NUMBERS: Final = struct.Struct(f"<{_FLOATS}e")
_NOTHING: Final = np.zeros(PAST, np.float32)


class Encoder(Protocol):
    """Turns texts into meanings, in batches."""

    def instructions(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Those of application-level texts, a row each; remembered by content."""
        ...

    def inputs(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Those of users' texts, a row each."""
        ...


class Past(Protocol):
    """What is known of earlier answers of the same application and tenant."""

    def past(self, app: int, tenant: int) -> NDArray[np.float32]:
        """`PAST` numbers, all 0 where nothing is known."""
        ...


class Features(msgspec.Struct, frozen=True, eq=False):
    """Of one request. `app` and `tenant` are hashes (`app` 0: no instruction); `meaning` is both texts', or `None`.

    At most about 2.5 KB with meanings and 1 KB without. Holds no text.
    """

    input_tokens: int
    prompt_tokens: int
    most: int
    app: int
    tenant: int
    instruction: NDArray[np.uint16]
    words: NDArray[np.uint16]
    shares: NDArray[np.float32]
    past: NDArray[np.float32]
    meaning: NDArray[np.float16] | None = None

    def to_bytes(self) -> bytes:
        """For a table or another process; the same on every machine."""
        header = _HEADER.pack(
            VERSION, self.meaning is not None, len(self.instruction), len(self.words),
            self.input_tokens, self.prompt_tokens, self.most, self.app, self.tenant,
        )  # fmt: skip
        numbers = _NUMBERS.pack(*self.shares.tolist(), *self.past.tolist())
        ids = b"".join(ids.astype("<u2", copy=False).tobytes() for ids in (self.instruction, self.words) if len(ids))
        return header + numbers + ids + (b"" if self.meaning is None else self.meaning.astype("<f2").tobytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The opposite of `to_bytes` (numbers rounded to half precision). Raises ValueError for anything else."""
        if len(data) < _HEADER.size or data[0] != VERSION:
            raise ValueError(f"not features of version {VERSION}")
        _, meant, instructions, words, input_tokens, prompt_tokens, most, app, tenant = _HEADER.unpack_from(data)
        wanted = _HEADER.size + 2 * (_FLOATS + instructions + words + 2 * MEANING * meant)
        if len(data) != wanted or max(instructions, words) > MOST_HASHES:
            raise ValueError(f"features of {len(data)} bytes where {wanted} were expected")
        numbers = np.frombuffer(data, "<f2", _FLOATS, _HEADER.size).astype(np.float32)
        ids = np.frombuffer(data, "<u2", instructions + words, _HEADER.size + 2 * _FLOATS).astype(np.uint16)
        rest = _HEADER.size + 2 * (_FLOATS + instructions + words)
        return cls(
            input_tokens, prompt_tokens, most, app, tenant, ids[:instructions], ids[instructions:],
            numbers[: len(SHARES) + 1], numbers[len(SHARES) + 1 :],
            np.frombuffer(data, "<f2", 2 * MEANING, rest).astype(np.float16) if meant else None,
        )  # fmt: skip


def featurise(batch: Sequence[Asked], encoder: Encoder | None = None, past: Past | None = None) -> list[Features]:
    """Of many requests at once, in order. With an encoder the full tier's, without the fast tier's.

    `past` is asked what it knows now, so that a request is later learned from with what was known when it came.
    """
    if not batch:
        return []
    words, shares = hashed([asked.text for asked in batch])
    meanings: Sequence[NDArray[np.float16] | None] = [None] * len(batch)
    if encoder is not None:
        parts = [encoder.instructions([asked.instruction for asked in batch]), encoder.inputs([a.text for a in batch])]
        meanings = list(np.concatenate(parts, axis=1))
    found = []
    for asked, ids, share, meaning in zip(batch, words, shares, meanings, strict=True):
        app, instruction = _instruction(asked.instruction) if asked.instruction else (0, _NO_WORDS)
        tenant = key(asked.tenant)
        known = _NOTHING if past is None else past.past(app, tenant)
        found.append(
            Features(
                _tokens(asked.input_tokens), _tokens(asked.prompt_tokens), _tokens(asked.most), app, tenant,
                instruction, ids, share, known, meaning,
            )
        )  # fmt: skip
    return found


def key(name: str) -> int:
    """A hash of a tenant's or application's name, 64 bits, the same everywhere; deleting by tenant goes by it."""
    return _key(name) if len(name) <= 256 else _digest(name)


def app_of(asked: Asked) -> int:
    """The hash of its instruction, 0 for none."""
    return _instruction(asked.instruction)[0] if asked.instruction else 0


_NO_WORDS: Final = np.zeros(0, np.uint16)


def _tokens(count: int) -> int:
    return min(max(int(count), 0), 2**32 - 1)


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little") | 1


@lru_cache(4096)
def _key(name: str) -> int:
    return _digest(name)


MOST_INSTRUCTIONS: Final = 512
_instructions: OrderedDict[int, NDArray[np.uint16]] = OrderedDict()
"""Of the latest, by their hash: under 1 KB each, and no text."""

_remembering: Final = threading.Lock()


def _instruction(text: str) -> tuple[int, NDArray[np.uint16]]:
    """Its hash and its words' hashes."""
    app = _digest(text)
    with _remembering:
        words = _instructions.pop(app, None)
        if words is not None:
            _instructions[app] = words
            return app, words
    words = hashed([text])[0][0].copy()  # no view of more
    with _remembering:
        _instructions[app] = words
        while len(_instructions) > MOST_INSTRUCTIONS:
            _instructions.popitem(last=False)
    return app, words
