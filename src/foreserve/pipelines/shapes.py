"""What flows along an edge, by its annotation: which fits which, and how to say so in words.

`Stream[T]` is many, `Text` is text in the making, everything else is one value. A value that nobody annotated is `Any`
and fits everything.
"""

from __future__ import annotations

import collections.abc as abc
import types
import typing
from typing import Any, Union, get_args, get_origin

from foreserve.pipelines.stream import Stream
from foreserve.pipelines.text import Text

_UNIONS = (Union, types.UnionType)
_LATER = (abc.Awaitable,)
_WIDER = {int: (float, complex), float: (complex,)}


def is_stream(kind: Any) -> bool:
    """Whether it is many."""
    return kind is Stream or get_origin(kind) is Stream


def is_later(kind: Any) -> bool:
    """Whether a stage wants to be called before it is there, and awaits it."""
    return get_origin(kind) in _LATER


def inner(kind: Any) -> Any:
    """What a stream is of, what an awaitable gives, what a list has."""
    return (get_args(kind) or (Any,))[0]


def stream_of(kind: Any) -> Any:
    """Many of these."""
    return Stream[kind]


def value_of(kind: Any) -> Any:
    """What is left of a flow as one value: streams are lists then, and live text is text."""
    if is_stream(kind):
        return list[value_of(inner(kind))]  # type: ignore[misc]
    return str if kind is Text else kind


def depth(kind: Any) -> int:
    """How many levels of streams it has."""
    return 1 + depth(inner(kind)) if is_stream(kind) else 0


def gathers(have: Any, want: Any) -> bool:
    """Whether a stream is to be given as a list."""
    return is_stream(have) and not is_stream(want) and get_origin(want) in (list, abc.Sequence)


def fits(have: Any, want: Any) -> bool:
    """Whether what flows as `have` can be given to whoever annotated `want`. What cannot be told apart fits."""
    if want is Any or have is Any or have == want or want is object:
        return not (is_stream(have) and want is object)
    if is_later(want):
        return fits(have, inner(want))
    if is_stream(have):
        if is_stream(want) or gathers(have, want):
            return fits(inner(have), inner(want))
        return _in_union(have, want)
    if is_stream(want):
        return False
    if get_origin(want) in _UNIONS or get_origin(have) in _UNIONS:
        return _in_union(have, want)
    if have is Text:
        return want is str
    if want is Text:
        return have is str
    return _plain_fits(have, want)


def _in_union(have: Any, want: Any) -> bool:
    if get_origin(have) in _UNIONS:
        return all(fits(each, want) for each in get_args(have))
    return get_origin(want) in _UNIONS and any(fits(have, each) for each in get_args(want))


def _plain_fits(have: Any, want: Any) -> bool:
    ours, theirs = get_origin(have) or have, get_origin(want) or want
    if not isinstance(ours, type) or not isinstance(theirs, type):
        return True
    if theirs in _WIDER.get(ours, ()):
        return True
    try:
        if not issubclass(ours, theirs):
            return False
    except TypeError:  # a protocol that cannot be asked
        return True
    mine, wanted = get_args(have), get_args(want)
    if ours is theirs and len(mine) == len(wanted):
        return all(fits(a, b) for a, b in zip(mine, wanted, strict=True) if b is not Ellipsis)
    return True


def words(kind: Any) -> str:
    """As a person would write it."""
    if kind is Any:
        return "Any"
    if kind is type(None):
        return "None"
    args = get_args(kind)
    origin = get_origin(kind)
    if origin in _UNIONS:
        return " | ".join(words(each) for each in args)
    name = getattr(origin or kind, "__name__", None) or str(kind)
    return f"{name}[{', '.join(words(each) for each in args)}]" if args and origin is not None else name


def hints_of(code: Any, where: str) -> dict[str, Any]:
    """The annotations of a function, evaluated. Raises ConfigError naming the one that cannot be."""
    from foreserve.errors import ConfigError

    try:
        return typing.get_type_hints(code)
    except Exception as error:
        raise ConfigError(f"{where}: its annotations cannot be read: {error}") from error
