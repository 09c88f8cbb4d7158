"""What an upstream service and the remote engine say to each other: another server's requests and answers."""

from __future__ import annotations

import msgspec


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """Send this to the server as it is. `path` begins with `/v1/`; `headers` are those worth passing on.

    `count_tokens` allows the engine to ask for token counts that the client did not ask for; the one event that tells
    them is then kept from the client. `max_tokens` is what the body says, for the price alone, `answers` how many it
    asks for: servers count each of them as a request.
    """

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = {}
    count_tokens: bool = False
    max_tokens: int | None = None
    answers: int = 1


class Head(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The server has begun to answer. Always the first chunk's data."""

    status: int
    content_type: str
    headers: dict[str, str] = {}


class Body(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Bytes of the answer, as they came: whole server-sent events when it is an event stream."""

    data: bytes


Answer = Head | Body
