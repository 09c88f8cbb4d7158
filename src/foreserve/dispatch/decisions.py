"""What a recording of decisions is made of: each call of a policy, a placement and an admission, and its answer.

One line of JSON each, in order. No payload and no text of a request is in it. Numbers that JSON does not have are the
words `inf`, `-inf` and `nan`.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, Literal

import msgspec

from foreserve.core import EngineLoad, Outcome, Work
from foreserve.ports import Pick, QueueView, Refusal, Room, Unread


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="recording"):
    """The first line. `version` is the server's."""

    format: Literal[1] = 1
    version: str


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag="ended"):
    """The last line, of a recording that was not cut off. `why`: `closed` where it has all that was decided."""

    why: str


class Call(msgspec.Struct, frozen=True, kw_only=True, tag_field="call", tag=str.lower, omit_defaults=True):
    """Base of all others. `now` is in loop seconds."""

    service: str


class Made(Call, frozen=True, kw_only=True):
    """These decide from now on; what waits is added anew."""

    policy: str
    options: dict[str, Any]
    placement: str
    admission: str
    max_waiting: int
    max_wait_s: float


class Add(Call, frozen=True, kw_only=True):
    """A request begins to wait. Without `work` it is the one of the call before it in its service that had one."""

    now: float
    work: Work | None = None


class Remove(Call, frozen=True, kw_only=True):
    """A request waits no more."""

    id: str


class FrozenRoom(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `Room` as it was. `ahead` is its look-ahead's own record of itself (see `LookAhead`), `None` without one."""

    replica: str
    free: dict[str, float]
    capacity: dict[str, float]
    running: int
    load: EngineLoad | None = None
    ahead: Any = None
    tokens: int = 0
    unread: Unread | None = None
    token_s: float | None = None
    step_s: float | None = None
    heard: float | None = None
    holds: dict[str, float] = {}


class Picked(Call, frozen=True, kw_only=True):
    """Who runs next was asked. A room that is a name is as it was when that replica's was last written.

    The answer is `pick`, or to wait `until`, or nothing; or it `raised`.
    """

    now: float
    rooms: list[FrozenRoom | str]
    pick: Pick | None = None
    until: float | None = None
    raised: str = ""


class Placed(Call, frozen=True, kw_only=True):
    """Where these run was asked, of rooms as in `Picked`."""

    now: float
    ids: tuple[str, ...]
    rooms: list[FrozenRoom | str]
    replica: str


class Stood(Call, frozen=True, kw_only=True):
    """How many would start before a request was asked (see `ports.Ahead`). `work` as in `Add`."""

    now: float
    place: float
    work: Work | None = None


class Admitted(Call, frozen=True, kw_only=True):
    """Whether to take a request in was asked; with a `refusal` it was not. `work` as in `Add`."""

    now: float
    view: QueueView
    work: Work | None = None
    refusal: Refusal | None = None


class Settled(Call, frozen=True, kw_only=True):
    """A request has ended."""

    outcome: Outcome


Line = Begun | Ended | Made | Add | Remove | Picked | Placed | Stood | Admitted | Settled
Entry = Made | Add | Remove | Picked | Placed | Stood | Admitted | Settled


_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODER: Final = msgspec.json.Decoder(Line, strict=False)
_PACKER: Final = msgspec.msgpack.Encoder()
_NOT_FINITE: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]", re.DOTALL)
"""How a packed number begins that is not finite. Other bytes may look like it, which costs time alone."""

_WORDS: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encoded(value: Any) -> bytes:
    """A line, or a part of one. Looking for what JSON would make `null` of takes half as long as the writing."""
    if _NOT_FINITE.search(_PACKER.encode(value)) is None:
        return _ENCODER.encode(value)
    return _ENCODER.encode(_worded(msgspec.to_builtins(value)))


def decoded(line: bytes) -> Line:
    """What `encoded` has made bytes of. Raises msgspec.DecodeError."""
    found: Line = _DECODER.decode(line)
    if isinstance(found, Made):  # what is not typed stays words
        return msgspec.structs.replace(found, options=_numbers(found.options))
    return found


def _worded(value: Any) -> Any:
    match value:
        case dict():
            return {name: _worded(each) for name, each in value.items()}
        case list() | tuple():
            return [_worded(each) for each in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def _numbers(value: Any) -> Any:
    match value:
        case dict():
            return {name: _numbers(each) for name, each in value.items()}
        case list():
            return [_numbers(each) for each in value]
        case str():
            return _WORDS.get(value, value)
    return value


def frozen(room: Room) -> FrozenRoom:
    """A room as it is now."""
    return FrozenRoom(
        replica=room.replica,
        free=dict(room.free),
        capacity=dict(room.capacity),
        running=room.running,
        load=room.load,
        ahead=None if room.ahead is None else room.ahead.frozen(),
        tokens=room.tokens,
        unread=room.unread,
        token_s=room.token_s,
        step_s=room.step_s,
        heard=room.heard,
        holds=dict(room.holds),
    )
