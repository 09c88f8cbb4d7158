"""Real engines that give each request the length its answer really had: the model works, the lengths are the data's.

A small model's own answers have other lengths than those that people got for the same prompts. So the true length of
each prompt is kept in a file that the worker alone reads; service, policies and predictors see the `max_tokens` that
the client set, and learn a length when it has ended, as they would live.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from foreserve.core import Chunk, EngineInfo, Finish, Work
from foreserve.engines.answer import generate_of
from foreserve.engines.openvino import OpenVINOEngine
from foreserve.errors import EngineStartError

FACTORY = f"{Path(__file__).resolve()}:ReplayedOpenVINO"
"""For `EngineSpec.factory`."""


def key(prompt: Sequence[int]) -> str:
    """How a prompt's token ids are called in the file."""
    return hashlib.blake2b(array("q", prompt).tobytes(), digest_size=12).hexdigest()


def write(path: Path, truths: Mapping[str, int]) -> None:
    """Keep the true length (tokens, at least 1) of each prompt, by its `key`."""
    path.write_bytes(msgspec.json.encode(truths))


def read(path: Path) -> dict[str, int]:
    """What `write` kept."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, int])


def replayed(work: Work, truths: Mapping[str, int]) -> Work | None:
    """The same request with its true length in place of its limit, `None` when that is not known."""
    payload = generate_of(work)
    tokens = truths.get(key(payload.prompt))
    if tokens is None:
        return None
    payload = msgspec.structs.replace(payload, max_tokens=min(tokens, payload.max_tokens), ignore_eos=True)
    return msgspec.structs.replace(work, payload=payload)


def as_ended(chunk: Chunk, limit: int) -> Chunk:
    """An answer that has its true length has stopped by itself, as far as others can tell."""
    finish = chunk.finish
    if finish is None or finish.reason != "length" or finish.usage.get("output_tokens", 0) >= limit:
        return chunk
    return msgspec.structs.replace(chunk, finish=msgspec.structs.replace(finish, reason="stop"))


class ReplayedOpenVINO(OpenVINOEngine):
    """OpenVINO's engine, each answer as long as `truths` (a file of `write`) says; others are rejected."""

    def __init__(self, *, truths: str, **options: Any) -> None:
        super().__init__(**options)
        self._truths_file = Path(truths)
        self._truths: dict[str, int] = {}

    async def start(self) -> EngineInfo:
        """See `Engine`."""
        try:
            self._truths = read(self._truths_file)
        except (OSError, msgspec.MsgspecError) as error:
            raise EngineStartError(f"the true lengths cannot be read: {error}") from error
        return await super().start()

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        true = replayed(work, self._truths)
        if true is None:
            finish = Finish(reason="rejected", error="no true length is known of this prompt")
            yield Chunk(id=work.id, index=0, attempt=work.attempt, finish=finish)
            return
        limit = generate_of(work).max_tokens
        async for chunk in super().run(true, plan):
            yield as_ended(chunk, limit)
