"""Bytes of a body to a struct, with errors in words: what is wrong, in which field, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any, Generic, TypeVar

import msgspec

from foreserve.errors import BadRequest
from foreserve.registry import choices

T = TypeVar("T")

_PLACE = re.compile(r" - at `\$\.?(?P<place>.*)`$", re.DOTALL)
_FIELD = re.compile(r"(?P<what>unknown|missing required) field `(?P<name>.*?)`", re.DOTALL)
_INDEX = re.compile(r"\[(?:\d+|\.\.\.)\]")


class Decoder(Generic[T]):
    """Decodes one type of body. `hidden` fields are known but not offered when an unknown one is refused."""

    def __init__(self, into: type[T], hidden: Collection[str] = ()) -> None:
        self._decoder = msgspec.json.Decoder(into)
        self._into = into
        self._hidden = hidden

    def decode(self, raw: bytes) -> T:
        """One body. Raises BadRequest; its `param` says where."""
        try:
            return self._decoder.decode(raw)
        except msgspec.ValidationError as error:
            raise self._named(str(error)) from None
        except UnicodeDecodeError as error:
            raise BadRequest(f"the body is not valid UTF-8: {error.reason}") from None
        except msgspec.DecodeError as error:
            raise BadRequest(f"the body is not valid JSON: {error}") from None
        except RecursionError:
            raise BadRequest("the body is not valid JSON: it is nested too deeply") from None

    def _named(self, message: str) -> BadRequest:
        """`Expected `float` <= 2.0 - at `$.temperature`` with `param="temperature"` and the valid choices."""
        place = ""
        if match := _PLACE.search(message):
            place = match["place"]
            message = message[: match.start()]
        owner = _struct_at(self._into, place)
        if field := _FIELD.search(message):
            name = field["name"][:200]
            param = f"{place}.{name}" if place else name
            if field["what"] != "unknown":
                return BadRequest(f"the field `{param}` is missing", param=param)
            known = [item.encode_name for item in msgspec.structs.fields(owner)] if owner else []
            valid = choices(name, (item for item in known if item not in self._hidden))
            return BadRequest(f"the field `{param}` is not known{valid}", param=param)
        message = message.replace("`", "")
        message = message[:1].lower() + message[1:]
        if message.startswith("invalid enum value"):
            holder = _struct_at(self._into, place.rpartition(".")[0])
            message += f"; valid: {', '.join(_literals(holder, place.rpartition('.')[2]))}"
        elif tags := message.startswith("invalid value") and _tags_at(self._into, place):
            message += f"; valid: {', '.join(tags)}"
        return BadRequest(f"`{place}`: {message}" if place else f"the body: {message}", param=place or None)


def _struct_at(root: Any, place: str) -> type[msgspec.Struct] | None:
    """The struct that lies at `messages[0].content` within `root`, where there is just one it could be."""
    return next(_structs(_hint_at(root, place)), None)


def _hint_at(root: Any, place: str) -> Any:
    at: Any = root
    for name in filter(None, _INDEX.sub("", place).split(".")):
        struct = next(_structs(at), None)
        fields = {item.encode_name: item.type for item in msgspec.structs.fields(struct)} if struct else {}
        at = fields.get(name)
    return at


def _tags_at(root: Any, place: str) -> list[str]:
    """The words by which the structs at `changes[1].op` are told apart, where `op` is what tells them."""
    owner, _, name = place.rpartition(".")
    configs = [struct.__struct_config__ for struct in _structs(_hint_at(root, owner))]
    return [str(each.tag) for each in configs if each.tag_field == name]


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for inner in getattr(hint, "__args__", ()):
        yield from _structs(inner)


def _literals(struct: type[msgspec.Struct] | None, name: str) -> list[str]:
    hint = next((f.type for f in msgspec.structs.fields(struct) if f.encode_name == name), None) if struct else None

    def walk(hint: Any) -> Iterator[str]:
        for inner in getattr(hint, "__args__", ()):
            if isinstance(inner, str):
                yield inner
            else:
                yield from walk(inner)

    return list(walk(hint))
