"""What the user's code returns, as what can cross a process: plain values, or named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from foreserve.calling import Output
from foreserve.tensors import Tensor, is_array, tensor_of

OUTPUT = "output"
"""The name of a result that has none of its own; of several `output_0`, `output_1`, …"""


class Raised:
    """What the user's code raised: an exception cannot cross a future when it is StopIteration."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @property
    def words(self) -> str:
        """On one line, for the caller; the traceback is for the log."""
        words = f"{type(self.error).__name__}: {self.error}"
        if isinstance(self.error, MemoryError):
            return f"the call ran out of memory ({words.rstrip(': ')})"
        return words


def sent(value: Any, *, as_tensors: bool) -> Any:
    """`value` as it crosses: plain values, or a list of `Output`s. `Raised` when it cannot, or is that already."""
    if isinstance(value, Raised):
        return value
    try:
        return outputs(value) if as_tensors else plain(value)
    except Exception as error:
        return Raised(TypeError(f"a result of type {type(value).__name__} cannot be sent: {error}"))


def plain(value: Any) -> Any:
    """Plain values and bytes; arrays become lists. Raises TypeError or NotImplementedError for what is neither."""
    return msgspec.to_builtins(value, builtin_types=(bytes, bytearray), enc_hook=_array)


def outputs(value: Any) -> list[Output]:
    """One for each name of a mapping, for each array of a list or tuple of arrays, else a single one.

    Raises TypeError for what is no tensor.
    """
    if isinstance(value, Mapping):
        return [Output(name=str(name), tensor=_tensor(each, str(name))) for name, each in value.items()]
    if isinstance(value, (list, tuple)) and value and all(is_array(each) or isinstance(each, Tensor) for each in value):
        return [Output(name=f"{OUTPUT}_{n}", tensor=_tensor(each, f"{OUTPUT}_{n}")) for n, each in enumerate(value)]
    return [Output(name=OUTPUT, tensor=_tensor(value, OUTPUT))]


def _tensor(value: Any, name: str) -> Tensor:
    try:
        return tensor_of(value)
    except TypeError as error:
        raise TypeError(f"output {name!r}: {error}") from None


def _array(value: Any) -> Any:
    """Arrays and their scalars (numpy, torch) as lists and numbers; models of pydantic as objects."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"{type(value).__name__} is no plain value; return numbers, text, lists or dicts")
