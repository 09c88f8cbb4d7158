"""What becomes of a message that cannot be carried to a worker: too long, or with values that cannot be sent."""

from __future__ import annotations

from foreserve.core import Chunk, Finish
from foreserve.errors import TooLarge
from foreserve.messages import Chunks, Feed, FromWorker, Run, StartFailed, ToWorker, encode
from foreserve.runtime.outbox import MessageTooLong


def carried(message: ToWorker, most_bytes: int) -> bytes:
    """As bytes. Raises MessageTooLong, TypeError or ValueError."""
    data = encode(message)
    if len(data) > most_bytes:
        raise MessageTooLong(len(data), most_bytes)
    return data


def refusal(name: str, message: ToWorker, error: Exception) -> tuple[ToWorker, ...] | FromWorker:
    """What is to be sent in its place, one by one, or what its sender shall hear. A `Feed` raises TooLarge."""
    words = f"cannot be sent to the engine: {error}"
    if isinstance(message, Run) and len(message.works) > 1:
        return tuple(Run((work,), message.plan) for work in message.works)
    if isinstance(message, Run):
        (work,) = message.works
        finish = Finish(reason="rejected", error=f"the request {words}")
        return Chunks((Chunk(id=work.id, index=0, attempt=work.attempt, finish=finish),))
    if isinstance(message, Feed):
        raise TooLarge(f"this part of the prompt {words}")
    return StartFailed(f"{name}: the engine's options are wrong: {type(message).__name__} {words}")
