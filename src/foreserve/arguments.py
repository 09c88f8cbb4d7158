"""A function's parameters by their annotations: what a call must bring, and its values made of what came.

The gateway checks a call by these before it is queued; the worker makes the values, since only plain ones cross.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from foreserve import tensors
from foreserve.calling import Call, File
from foreserve.errors import BadRequest
from foreserve.tensors import Tensor

_PLACE = re.compile(r" - at `\$(?P<place>.*)`$", re.DOTALL)


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter as a caller sees it. `words` is its annotation."""

    name: str
    takes: Literal["value", "bytes", "file", "files"] = "value"
    required: bool = True
    words: str = ""


class Arguments:
    """The parameters of `code`. With `batched` each is annotated as a list, and a call brings one element of it.

    What has no annotation, or one that cannot be resolved, takes any value. `method`: the first parameter is `self`.
    """

    def __init__(self, code: Callable[..., Any], *, batched: bool = False, method: bool = False) -> None:
        try:
            signature = inspect.signature(code)
        except (TypeError, ValueError):
            self.signature = None  # some built-ins have none; their own TypeError must do
            self.hints: dict[str, Any] = {}
            self.parameters: tuple[Parameter, ...] = ()
            return
        given = list(signature.parameters.values())[method:]
        self.signature = signature.replace(parameters=given)
        named = [each for each in given if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        hints = {each.name: _hint(each, code) for each in named}
        self.hints = {name: _element(hint) if batched else hint for name, hint in hints.items()}
        self.parameters = tuple(self._told(each) for each in named)

    def _told(self, parameter: inspect.Parameter) -> Parameter:
        hint = self.hints[parameter.name]
        takes: Literal["value", "bytes", "file", "files"] = "value"
        if hint is bytes:
            takes = "bytes"
        elif hint is File:
            takes = "file"
        elif get_origin(hint) is list and get_args(hint) == (File,):
            takes = "files"
        required = parameter.default is parameter.empty
        return Parameter(name=parameter.name, takes=takes, required=required, words=_words(hint))

    def check(self, call: Call) -> None:
        """Raises BadRequest for a call that does not fit; `param` says where."""
        self.values(call)

    def values(self, call: Call) -> dict[str, Any]:
        """The keyword arguments as the code takes them. Raises BadRequest; `param` says which does not fit, and how."""
        if self.signature is not None:
            try:
                self.signature.bind(**dict.fromkeys(call.names))
            except TypeError as error:
                raise BadRequest(f"wrong arguments: {error}; the function takes ({self._taken()})") from None
        made = {name: self._plain(name, value, call.lax) for name, value in call.args.items()}
        made |= {name: self._files(name, files) for name, files in call.files.items()}
        return made | {name: self._tensor(name, tensor) for name, tensor in call.tensors.items()}

    def _taken(self) -> str:
        """What a call brings, in words: of a batch one element of each."""
        return ", ".join(f"{one.name}: {one.words}{'' if one.required else ' = …'}" for one in self.parameters)

    def _plain(self, name: str, value: Any, lax: bool) -> Any:
        hint = self.hints.get(name, Any)
        if is_fed(hint):  # all items at once
            hint = list[get_args(hint)[0]] if get_args(hint) else list  # type: ignore[misc]
        try:
            return _converted(value, hint, lax)
        except msgspec.ValidationError as error:
            raise self._refused(name, str(error)) from None

    def _files(self, name: str, files: list[File]) -> Any:
        hint = self.hints.get(name, Any)
        if hint is File or (hint is Any and len(files) == 1):
            if len(files) == 1:
                return files[0]
            raise self._refused(name, f"Expected one file, got {len(files)}")
        if hint is Any or get_args(hint) == (File,):
            return files
        if hint is bytes and len(files) == 1:
            return files[0].data
        raise self._refused(name, f"Expected {_words(hint)}, got a file")

    def _tensor(self, name: str, tensor: Tensor) -> Any:
        """As an array, or as the plain values that the annotation asks for."""
        hint = self.hints.get(name, Any)
        try:
            made = tensors.array(tensor)
        except ImportError:
            return tensor
        if hint is Any or _library(hint) == "numpy":
            return made
        if _library(hint) == "torch":
            return sys.modules["torch"].tensor(made)
        texts = tensor.datatype == "BYTES"
        nested = [made.tolist(), _decoded(made.tolist())] if texts else [made.tolist()]
        flat = [item for values in nested if made.size == 1 for item in [_only(values)]]
        for value in (*nested, *flat):
            try:
                return msgspec.convert(value, hint, strict=False, dec_hook=_hook)
            except msgspec.ValidationError:
                continue
        raise self._refused(name, f"Expected {_words(hint)}, got {tensor.datatype} of shape {list(tensor.shape)}")

    def _refused(self, name: str, message: str) -> BadRequest:
        place = ""
        if match := _PLACE.search(message):
            place, message = match["place"], message[: match.start()]
        words = message[:1].lower() + message[1:].replace("`", "")
        takes = _words(self.hints.get(name, Any))
        # Where the value itself is of the wrong type the message says what it takes; not so of one that is not listed.
        rest = f"; `{name}` takes {takes}" if place or words.startswith("invalid enum value") else ""
        return BadRequest(f"`{name}{place}`: {words}{rest}", param=f"{name}{place}")


def _hint(parameter: inspect.Parameter, code: Callable[..., Any]) -> Any:
    """Its annotation, resolved by itself: one that only a type checker can resolve does not cost the others."""
    if parameter.annotation is parameter.empty:
        return Any
    holder: Any = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    plain = inspect.unwrap(code)
    names = getattr(plain, "__globals__", None) or getattr(getattr(plain, "__func__", None), "__globals__", {})
    try:
        hint = get_type_hints(holder, globalns=names, include_extras=True)[parameter.name]
        if _library(hint) is None:
            msgspec.convert(None, hint, dec_hook=_hook)
    except msgspec.ValidationError:
        pass
    except Exception:  # a name that is not there, or a type that plain values cannot be told by
        return Any
    return hint


def _element(hint: Any) -> Any:
    """What one call brings of a parameter that is annotated for a batch."""
    return get_args(hint)[0] if get_origin(hint) is list and get_args(hint) else Any


def _words(hint: Any) -> str:
    """As its author wrote it, without the modules that names come from."""
    return "any value" if hint is Any else _named(hint)


def _named(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin in (Union, UnionType):
        return " | ".join(map(_named, inner))
    if origin is Annotated:
        notes = [repr(note).removeprefix("msgspec.") for note in inner[1:]]
        return f"Annotated[{', '.join([_named(inner[0]), *notes])}]"
    if hint is Ellipsis or hint is None or hint is NoneType:
        return "..." if hint is Ellipsis else "None"
    name = getattr(origin or hint, "__name__", None)
    if name is None or isinstance(hint, str | list):
        return str(hint).replace("typing.", "")
    return f"{name}[{', '.join(map(_named, inner))}]" if inner else str(name)


def _converted(value: Any, hint: Any, lax: bool) -> Any:
    if hint is Any:
        return value
    match _library(hint):
        case "numpy":
            return _array(value, hint)
        case "torch":
            return _made(lambda: sys.modules["torch"].tensor(value))
    return msgspec.convert(value, hint, strict=not lax, dec_hook=_hook)


def _array(value: Any, hint: Any) -> Any:
    """Nested lists as an array; of the element type that `NDArray[np.float32]` names, where it names one."""
    numpy = sys.modules["numpy"]
    inner = get_args(get_args(hint)[1]) if len(get_args(hint)) == 2 else ()
    dtype = inner[0] if inner and isinstance(inner[0], type) else None
    made = _made(lambda: numpy.asarray(value, dtype))
    if made.dtype.kind == "O":
        raise msgspec.ValidationError("Expected nested lists of numbers or text, all of one shape")
    return made


def _made(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise msgspec.ValidationError(f"Expected an array: {error}") from None


def is_fed(hint: Any) -> bool:
    """Whether an annotation, `foreserve.Stream[T]`, takes items as they come; by name, since workers import little."""
    kind = get_origin(hint) or hint
    place = (getattr(kind, "__module__", ""), getattr(kind, "__qualname__", ""))
    return place == ("foreserve.pipelines.stream", "Stream")


def _library(hint: Any) -> str | None:
    """`numpy` or `torch`, where a hint is an array of theirs."""
    origin = get_origin(hint) or hint
    place = (getattr(origin, "__module__", ""), getattr(origin, "__qualname__", ""))
    return {("numpy", "ndarray"): "numpy", ("torch", "Tensor"): "torch"}.get(place)


def _hook(kind: type[Any], value: Any) -> Any:
    """Types that msgspec does not know: pydantic's models make themselves; others are taken as they are, if they are.

    What pydantic says of several fields is told on one line.
    """
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        return value
    try:
        return validate(value)
    except ValueError as error:
        raise ValueError(_pydantic_words(error)) from None


def _pydantic_words(error: ValueError) -> str:
    listed = getattr(error, "errors", None)
    if listed is None:
        return str(error)
    faults: list[Mapping[str, Any]] = listed(include_url=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in faults[:8])


def _decoded(values: Any) -> Any:
    """Bytes within nested lists as text, where they are UTF-8."""
    if isinstance(values, list):
        return [_decoded(each) for each in values]
    return values.decode(errors="replace") if isinstance(values, bytes) else values


def _only(values: Any) -> Any:
    while isinstance(values, list):
        values = values[0]
    return values
