"""Plain values, as an app file or a program gives them, to typed settings; what does not fit is told with its place."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from foreserve.errors import ConfigError
from foreserve.registry import choices

T = TypeVar("T")


def parse(data: Any, into: type[T], where: str) -> T:
    """`data` (plain mappings, lists, values) as `into`. Raises ConfigError that names the place and the valid choices.

    `where` is how the place of `data` is called, such as `app.yaml: services.chat`; keys below it are appended.
    """
    data = _words(data, into)
    _check(data, into, where)
    try:
        return msgspec.convert(data, into, strict=True)
    except msgspec.ValidationError as error:  # what a struct says of itself, with the place as `$.queue`
        message, _, path = str(error).partition(" - at `$")
        raise ConfigError(f"{where}{path.rstrip('`')}: {_lower(message)}") from None


def with_first(words: dict[str, Any], name: str, value: Any, where: str, what: str) -> dict[str, Any]:
    """`words` with what was given first, without its name (`None`: nothing was). Raises ConfigError if both name it."""
    if value is None:
        return words
    if name in words:
        raise ConfigError(f"{where}: {what} named twice, first without and then with `{name}=`")
    return {**words, name: value}


def _words(value: Any, kind: Any) -> Any:
    """`value` with `on` and `off` as words where those are choices: YAML reads them as yes and no unless quoted."""
    kinds = [part for part in _parts(kind) if part is not NoneType]
    if isinstance(value, bool):
        word = "on" if value else "off"
        valid = [choice for part in kinds if get_origin(part) is Literal for choice in get_args(part)]
        return word if word in valid and value not in valid and bool not in kinds else value
    for part in kinds:
        inner = get_args(part)
        if isinstance(value, Mapping) and isinstance(part, type) and issubclass(part, msgspec.Struct):
            types = {field.encode_name: field.type for field in msgspec.structs.fields(part)}
            return {key: _words(item, types[key]) if key in types else item for key, item in value.items()}
        if isinstance(value, Mapping) and get_origin(part) is dict:
            return {key: _words(item, inner[1]) for key, item in value.items()}
        if isinstance(value, (list, tuple)) and get_origin(part) is list:
            return [_words(item, inner[0]) for item in value]
    return value


def _check(value: Any, kind: Any, where: str) -> None:
    """Keys, choices and types that do not fit: msgspec would find them too, but without the valid ones."""
    kinds = [part for part in _parts(kind) if part is not NoneType]
    if (value is None and len(kinds) < len(_parts(kind))) or Any in kinds:
        return
    struct = next((part for part in kinds if isinstance(part, type) and issubclass(part, msgspec.Struct)), None)
    if struct is not None and (isinstance(value, Mapping) or len(kinds) == 1):
        _check_struct(value, struct, where)
        return
    for part in kinds:
        inner = get_args(part)
        if get_origin(part) is list and isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                _check(item, inner[0], f"{where}[{index}]")
            return
        if get_origin(part) is dict and isinstance(value, Mapping):
            for key, item in value.items():
                _check_key(key, where)
                _check(item, inner[1], f"{where}.{key}")
            return
    if all(get_origin(part) is Literal for part in kinds):
        valid = [choice for part in kinds for choice in get_args(part)]
        if value not in valid:
            raise ConfigError(f"{where} is {_short(value)}{choices(str(value), map(str, valid))}")
        return
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        said = _lower(str(error).partition(" - at ")[0])
        if int in kinds:  # a number or a range
            said = said.replace("array of length 2", "int or [least, most]")
        raise ConfigError(f"{where} is {_short(value)}: {said}") from None


def _check_struct(value: Any, struct: type[msgspec.Struct], where: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    if isinstance(value, struct):
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {_short(value)}: expected keys and values; valid: {', '.join(fields)}")
    for key, item in value.items():
        _check_key(key, where)
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown key {key!r}{choices(key, fields)}")
        _check(item, fields[key].type, f"{where}.{key}")
    for name, field in fields.items():
        if field.required and name not in value:
            raise ConfigError(f"{where}: missing key {name!r}; {struct.__name__} needs it")


def _check_key(key: Any, where: str) -> None:
    if not isinstance(key, str):
        raise ConfigError(f'{where}: the key {key!r} is not text; write "{key}"')


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _lower(message: str) -> str:
    if not message.startswith("Expected "):
        return message
    message = message.replace("`", "").replace(" | null", "").replace("got null", "got nothing")
    message = message.replace("int | array", "int or [least, most]")
    return "e" + message.replace("Expected object", "Expected keys and values")[1:]


def _short(value: Any) -> str:
    """A value as an error shows it: never a page of it."""
    text = "empty" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
