"""The safetensors format: where each tensor lies in an image, and how an image begins. Standard library alone.

An image is the length of its header (8 bytes, little-endian), the header (a JSON object: dtype, shape and place by
tensor name, and `__metadata__`) and the data. What is not exactly so is refused: a mapped image is trusted afterwards.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any, Final, NamedTuple

from foreserve.errors import EngineStartError

MAX_HEADER_BYTES: Final = 100_000_000
"""As the format's own library has it: enough for millions of tensors, and no image can make us read more."""

DTYPES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of an element. Types of less than a byte have no name in numpy or torch and are not read."""

_LENGTH_BYTES: Final = 8
_ALIGNMENT: Final = 64
"""Where the data of our images begins: the longest vector register, so that every tensor of it is aligned."""

_MOST_NAMED: Final = 5


class NotSafetensors(EngineStartError):
    """These bytes are no safetensors image; the message names the image, the tensor and what is wrong."""


class Tensor(NamedTuple):
    """One tensor: `begin` and `end` are its bytes in the image."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


Layout = Mapping[str, Tensor]


def parse(image: memoryview, where: str) -> dict[str, Tensor]:
    """Where everything is in `image`, all of it, in the order of the data. Raises NotSafetensors, naming `where`.

    Every byte of the data belongs to exactly one tensor; sizes are what dtype and shape say.
    """
    size = len(image)
    if size < _LENGTH_BYTES:
        raise NotSafetensors(
            f"{where} is no safetensors file: it has {size} bytes, less than the header's length takes"
        )
    length = int.from_bytes(image[:_LENGTH_BYTES], "little")
    if length > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise NotSafetensors(
            f"{where} is no safetensors file, or not all of it is there: its header would have {length} bytes, "
            f"the file has {size} and at most {MAX_HEADER_BYTES} are read"
        )
    header = _object(bytes(image[_LENGTH_BYTES : _LENGTH_BYTES + length]), where)
    header.pop("__metadata__", None)
    data = _LENGTH_BYTES + length
    tensors = [(name, _tensor(name, told, data, where)) for name, told in header.items()]
    tensors.sort(key=lambda each: (each[1].begin, each[1].end))
    _gapless(tensors, data, size, where)
    return dict(tensors)


def read(fd: int, where: str) -> dict[str, Tensor]:
    """As `parse`, of the file or memory that is open at `fd`. Reads the header alone."""
    size = os.fstat(fd).st_size
    if not size:
        raise NotSafetensors(f"{where} is no safetensors file: it is empty")
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapping, memoryview(mapping) as image:
        return parse(image, where)


def data_begin(fd: int) -> int:
    """Where the data of the first tensor begins, in an image that was read before."""
    return _LENGTH_BYTES + int.from_bytes(os.pread(fd, _LENGTH_BYTES, 0), "little")


def arranged(tensors: Mapping[str, tuple[str, tuple[int, ...]]], where: str) -> tuple[bytes, dict[str, Tensor]]:
    """The beginning of an image of tensors with these dtypes and shapes, and the place of each, in the image's order.

    The data follows without gaps. Wide elements come first, so that each tensor is aligned to its own.
    Raises NotSafetensors for a dtype that the format lacks and for a header that nobody would read.
    """
    for name, (dtype, _) in tensors.items():
        if dtype not in DTYPES or name == "__metadata__":
            raise NotSafetensors(f"{where}: {name!r} has dtype {dtype}; valid: {', '.join(DTYPES)}")
    order = sorted(tensors.items(), key=lambda each: (-DTYPES[each[1][0]], each[0]))
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in order:
        end = at + DTYPES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise NotSafetensors(f"{where}: the header would have {len(text)} bytes; at most {MAX_HEADER_BYTES} are read")
    data = _LENGTH_BYTES + len(text)
    places = {name: _tensor(name, told, data, where) for name, told in header.items()}
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, places


def _object(text: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name is there twice")
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise NotSafetensors(f"{where} is no safetensors file: its header cannot be read: {error}") from None
    if not isinstance(header, dict):
        raise NotSafetensors(f"{where} is no safetensors file: its header is no JSON object")
    return header


def _tensor(name: str, told: Any, data: int, where: str) -> Tensor:
    """The tensor as the header tells it, when that fits together."""
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        raise NotSafetensors(f"{where}: tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise NotSafetensors(f"{where}: tensor {name!r} has dtype {dtype!r}; valid: {', '.join(DTYPES)}")
    if not (_numbers(shape) and _numbers(offsets) and len(offsets) == 2):
        raise NotSafetensors(f"{where}: shape and data_offsets of tensor {name!r} must be lists of numbers from 0 on")
    begin, end = offsets
    needed = DTYPES[dtype] * prod(shape)
    if end - begin != needed:
        raise NotSafetensors(
            f"{where}: tensor {name!r} of {dtype} and shape {shape} takes {needed} bytes; its place has {end - begin}"
        )
    return Tensor(dtype, tuple(shape), data + begin, data + end)


def _numbers(told: Any) -> bool:
    return isinstance(told, list) and all(type(each) is int and each >= 0 for each in told)


def _gapless(tensors: list[tuple[str, Tensor]], data: int, size: int, where: str) -> None:
    """Refuse overlaps, bytes that are nobody's and data that is not there."""
    edge = Tensor("", (), data, data), Tensor("", (), size, size)
    for (name, one), (next_name, other) in pairwise([("the header", edge[0]), *tensors, ("the end", edge[1])]):
        if other.begin < one.end:
            words = "reaches beyond" if next_name == "the end" else "overlaps"
            raise NotSafetensors(
                f"{where}: {name!r}, to byte {one.end}, {words} {next_name!r}, from byte {other.begin}"
            )
        if other.begin > one.end:
            raise NotSafetensors(
                f"{where}: the {other.begin - one.end} bytes between {name!r} and {next_name!r} belong to no tensor"
            )


def named(names: list[str]) -> str:
    """The first few of `names`, and how many more there are, for the end of an error message."""
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
