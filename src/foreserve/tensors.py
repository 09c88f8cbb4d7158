"""Tensors as raw bytes, by the datatypes of the Open Inference Protocol. A worker needs no numpy to carry them.

Elements are in row-major order, little-endian. Those of `BYTES` are each a length of four bytes and as many bytes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

SIZES: dict[str, int] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
"""Bytes of an element, of the datatypes whose elements have one size."""

DATATYPES = (*SIZES, "BYTES")

MOST_DIMENSIONS = 32
MOST_ELEMENTS = 2**40
"""Of a shape, also of one that has none since another of its sizes is 0."""

_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_NAMES = {dtype.lstrip("<"): name for name, dtype in _DTYPES.items()}


class Tensor(msgspec.Struct, frozen=True):
    """Raw elements with their datatype and shape. `fault` says whether the three agree."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def elements(self) -> int:
        """How many the shape asks for."""
        return math.prod(self.shape)

    def fault(self) -> str | None:
        """What is wrong with it, in words; `None` when datatype, shape and data agree."""
        if (wrong := shape_fault(self.datatype, self.shape)) is not None:
            return wrong
        if self.datatype == "BYTES":
            try:
                count = sum(1 for _ in elements_of(self.data))
            except ValueError as error:
                return str(error)
            return None if count == self.elements else _count(count, self)
        size = SIZES[self.datatype]
        if len(self.data) != size * self.elements:
            return f"{len(self.data)} bytes of data; {self.datatype} of shape {list(self.shape)} has " + (
                f"{self.elements} elements of {size} bytes"
            )
        return None


def shape_fault(datatype: str, shape: Sequence[int]) -> str | None:
    """What is wrong with a datatype or a shape, in words."""
    if datatype not in DATATYPES:
        return f"the datatype {datatype[:32]!r} is none; valid: {', '.join(DATATYPES)}"
    if len(shape) > MOST_DIMENSIONS:
        return f"{len(shape)} dimensions; at most {MOST_DIMENSIONS} are taken"
    if any(size < 0 for size in shape):
        return f"the shape {list(shape)} has a negative size; valid: 0 or more in each dimension"
    if math.prod(max(1, size) for size in shape) > MOST_ELEMENTS:
        return f"the shape is of more than {MOST_ELEMENTS} elements"
    return None


def _count(count: int, tensor: Tensor) -> str:
    return f"{count} elements of data; the shape {list(tensor.shape)} has {tensor.elements}"


def elements_of(data: bytes) -> Iterator[bytes]:
    """The elements of `BYTES` data. Raises ValueError where a length leads beyond its end."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4 + size
        if at > len(data):
            raise ValueError("its BYTES data ends within an element; each is a length of 4 bytes and as many bytes")
        yield data[at - size : at]


def packed(elements: Sequence[bytes]) -> bytes:
    """`BYTES` data of these elements."""
    return b"".join(part for each in elements for part in (len(each).to_bytes(4, "little"), each))


# --- where there is numpy


def array(tensor: Tensor) -> Any:
    """A read-only numpy array on the tensor's own bytes; `BYTES` is an array of objects, BF16 becomes float32.

    Raises ImportError without numpy, ValueError where datatype, shape and data disagree.
    """
    import numpy as np

    if tensor.datatype == "BYTES":
        made = np.empty(tensor.elements, dtype=object)
        made[:] = list(elements_of(tensor.data))
        made = made.reshape(tensor.shape)
    elif tensor.datatype == "BF16":
        made = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4").reshape(tensor.shape)
    else:
        made = np.frombuffer(tensor.data, _DTYPES[tensor.datatype]).reshape(tensor.shape)
    made.flags.writeable = False
    return made


def tensor_of(value: Any) -> Tensor:
    """A numpy array, a torch tensor, a number, text, bytes or nested lists of one of these; a scalar has shape [1].

    Raises TypeError in words for what is none, ImportError without numpy.
    """
    if isinstance(value, Tensor):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            return Tensor("BF16", _shape(value.shape), value.view(torch.int16).numpy().tobytes())
        value = value.numpy()
    import numpy as np

    try:
        made = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"lists of unequal lengths are no tensor: {error}") from None
    if made.dtype.kind in "OUS":
        return Tensor("BYTES", _shape(made.shape), packed([_bytes(each) for each in made.ravel().tolist()]))
    name = _NAMES.get("?" if made.dtype.kind == "b" else f"{made.dtype.kind}{made.dtype.itemsize}")
    if name is None:
        raise TypeError(f"{type(value).__name__} of {made.dtype} is no tensor; valid: {', '.join(DATATYPES)}")
    return Tensor(name, _shape(made.shape), np.ascontiguousarray(made, _DTYPES[name]).tobytes())


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape) or (1,)


def _bytes(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    raise TypeError(f"an element of type {type(element).__name__} is none of a tensor; valid: numbers, text, bytes")


def is_array(value: Any) -> bool:
    """Whether it is an array of numpy or a tensor of torch; imports neither."""
    kinds = ((sys.modules.get("numpy"), "ndarray"), (sys.modules.get("torch"), "Tensor"))
    return any(module is not None and isinstance(value, getattr(module, name)) for module, name in kinds)
