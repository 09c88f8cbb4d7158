"""The messages between gateway and worker: typed, frozen, one tagged union each way.

The worker side needs nothing but msgspec and its engine, so this module imports nothing else.
"""

from __future__ import annotations

from typing import Any

import msgspec

from foreserve.core import Chunk, EngineInfo, EngineLoad, WeightsRef, Work


class Message(msgspec.Struct, frozen=True, tag_field="type", tag=str.lower):
    """Base of all messages; the class name in lower case is the tag on the wire."""


# --- to the worker -----------------------------------------------------------------------------------


class Start(Message, frozen=True):
    """Make this engine and become ready. A worker takes exactly one. See `EngineSpec` for the last three."""

    factory: str
    options: dict[str, Any]
    heartbeat_s: float = 1.0
    weights: tuple[WeightsRef, ...] = ()
    memory_bytes: int | None = None
    rest_s: float = 5.0


class Run(Message, frozen=True):
    """Run this work: one batch for a static engine, each by itself for a continuous one."""

    works: tuple[Work, ...]
    plan: Any = None


class Feed(Message, frozen=True):
    """More of an input that is still growing; `last` closes it."""

    id: str
    data: Any
    last: bool = False


class Credit(Message, frozen=True):
    """`n` more chunks may be asked of the engine, a continuous one, for this request."""

    id: str
    n: int


class Abort(Message, frozen=True):
    """Stop these requests within one step. Each still ends with a finish, unless it had ended already.

    `attempts` are those of `ids`, in their order: another attempt that runs meanwhile goes on. Without, any is stopped.
    """

    ids: tuple[str, ...]
    attempts: tuple[int, ...] = ()


class Drain(Message, frozen=True):
    """Finish what runs, refuse what comes, then say `Drained`."""


class Exit(Message, frozen=True):
    """Close the engine and end."""


ToWorker = Start | Run | Feed | Credit | Abort | Drain | Exit


# --- from the worker ---------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The engine can take work."""

    info: EngineInfo
    pid: int


class ImportedLater(Message, frozen=True):
    """Said after `Ready` by a worker that was forked: what it has imported since, and so every other would.

    `variables` are those of its environment that it has changed meanwhile, with check sums of their values. It was
    ready `seconds` after its fork.
    """

    modules: tuple[str, ...]
    variables: dict[str, int]
    seconds: float


class StartFailed(Message, frozen=True):
    """The engine cannot become ready, and why, in words."""

    reason: str


class Chunks(Message, frozen=True):
    """Everything that one engine step produced, for all its requests."""

    chunks: tuple[Chunk, ...]


class Heartbeat(Message, frozen=True):
    """The worker's loop turns, and this is its load."""

    load: EngineLoad


class Rested(Message, frozen=True):
    """It is idle and has given its weights on a device back; it takes work as ever."""


class Woke(Message, frozen=True):
    """It has them again, `seconds` after it asked for them; whether they had to be `copied` anew."""

    seconds: float
    copied: bool


class Drained(Message, frozen=True):
    """Nothing runs here any more."""


FromWorker = Ready | ImportedLater | StartFailed | Chunks | Heartbeat | Rested | Woke | Drained

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


def decode_to_worker(data: bytes) -> ToWorker:
    """Raises msgspec.DecodeError when `data` is no such message."""
    return _to_worker.decode(data)


def decode_from_worker(data: bytes) -> FromWorker:
    """Raises msgspec.DecodeError when `data` is no such message."""
    return _from_worker.decode(data)
