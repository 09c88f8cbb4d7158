"""Real engines that give each request the length its answer really had: the model works, the lengths are the data's.

A small model's own answers have other lengths than those that people got for the same prompts. So the true length of
each prompt is kept in a file that the worker alone reads; service, policies and predictors see the `max_tokens` that
the client set, and learn a length when it has ended, as they would live.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from foreserve.core import Chunk, EngineInfo, Finish, Work
from foreserve.engines.answer import generate_of
from foreserve.engines.openvino import OpenVINOEngine
from foreserve.engines.transformers import TransformersEngine
from foreserve.errors import EngineStartError

FACTORY = f"{Path(__file__).resolve()}:ReplayedOpenVINO"
"""For `EngineSpec.factory`."""

STATIC_FACTORY = f"{Path(__file__).resolve()}:ReplayedTransformers"
"""The same for static batches."""

MOST_BEGUN = 16_384
"""Requests that are remembered as they first came, for the case that they go on later."""


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


def _truths(file: Path) -> dict[str, int]:
    """As `read`, for an engine's start. Raises EngineStartError."""
    try:
        return read(file)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineStartError(f"the true lengths cannot be read: {error}") from error


def untold(work: Work) -> Chunk:
    """The only chunk of a prompt whose true length nobody has told."""
    finish = Finish(reason="rejected", error="no true length is known of this prompt")
    return Chunk(id=work.id, index=0, attempt=work.attempt, finish=finish)


class ReplayedOpenVINO(OpenVINOEngine):
    """OpenVINO's engine, each answer as long as `truths` (a file of `write`) says; others are rejected."""

    def __init__(self, *, truths: str, **options: Any) -> None:
        super().__init__(**options)
        self._truths_file = Path(truths)
        self._truths: dict[str, int] = {}

    async def start(self) -> EngineInfo:
        """See `Engine`."""
        self._truths = _truths(self._truths_file)
        return await super().start()

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        true = replayed(work, self._truths)
        if true is None:
            yield untold(work)
            return
        limit = generate_of(work).max_tokens
        async for chunk in super().run(true, plan):
            yield as_ended(chunk, limit)


class ReplayedTransformers(TransformersEngine):
    """The transformers engine, each answer as long as `truths` (a file of `write`) says; others are rejected.

    `steps` is a file that gets a line for each batch: its rows and the steps that all of them were computed for.
    """

    def __init__(self, *, truths: str, steps: str, **options: Any) -> None:
        super().__init__(**options)
        self._truths_file = Path(truths)
        self._truths: dict[str, int] = {}
        self._steps_file = Path(steps)
        self._begun: OrderedDict[str, tuple[int, int]] = OrderedDict()  # prompt as it came, true length

    async def start(self) -> EngineInfo:
        """See `Engine`."""
        self._truths = _truths(self._truths_file)
        return await super().start()

    async def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncGenerator[Sequence[Chunk]]:
        """See `Engine`."""
        true = [replayed for work in works if (replayed := self._replayed(work)) is not None]
        known = {work.id for work in true}
        if unknown := [work for work in works if work.id not in known]:
            yield [untold(work) for work in unknown]
        if not true:
            return
        limits = {work.id: generate_of(work).max_tokens for work in works}
        steps = 0
        async with aclosing(super().run_batch(true, plan)) as turns:
            async for chunks in turns:
                steps += 1
                yield [as_ended(chunk, limits[chunk.id]) for chunk in chunks]
        with self._steps_file.open("a") as file:
            file.write(f"{len(true)} {steps}\n")

    def _replayed(self, work: Work) -> Work | None:
        """With its true length, or what is left of that when it goes on after a part of its answer."""
        payload = generate_of(work)
        if work.id not in self._begun:
            tokens = self._truths.get(key(payload.prompt))
            if tokens is None:
                return None
            self._begun[work.id] = (len(payload.prompt), tokens)
            while len(self._begun) > MOST_BEGUN:
                self._begun.popitem(last=False)
        prompt, tokens = self._begun[work.id]
        left = max(1, tokens - (len(payload.prompt) - prompt))
        payload = msgspec.structs.replace(payload, max_tokens=min(left, payload.max_tokens), ignore_eos=True)
        return msgspec.structs.replace(work, payload=payload)
