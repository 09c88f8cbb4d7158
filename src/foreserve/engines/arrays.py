"""Arrays of numpy and tensors of torch as a safetensors image: what a loader of weights returns, written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from foreserve.engines.weights import TORCH
from foreserve.errors import EngineStartError
from foreserve.runtime.safetensors import arranged

FORMAT = {name: dtype for dtype, name in TORCH.items()}
"""dtypes of the format by the name that numpy (with ml_dtypes) and torch have in common."""


def write_image(file: BinaryIO, arrays: Any, where: str, room: Callable[[int], object]) -> None:
    """Write `arrays`, a mapping from names to arrays or tensors, to `file`, after `room(bytes)` was called.

    Raises EngineStartError that names what is no such mapping and what has a dtype that the format lacks.
    """
    if not isinstance(arrays, Mapping):
        raise EngineStartError(f"{where} returned {type(arrays).__name__}; valid: a mapping from names to arrays")
    plain = {_name(name, where): _plain(name, array, where) for name, array in arrays.items()}
    head, places = arranged({name: (dtype, shape) for name, (dtype, shape, _) in plain.items()}, where)
    room(max((place.end for place in places.values()), default=len(head)))
    file.write(head)
    for name, place in places.items():
        data = plain[name][2]
        assert len(data) == place.end - place.begin, name
        file.write(data)


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise EngineStartError(f"{where} returned an array called {name!r}; valid: names that are text")
    return name


def _plain(name: str, array: Any, where: str) -> tuple[str, tuple[int, ...], memoryview]:
    """Its dtype in the format, its shape and its bytes in C order."""
    if hasattr(array, "detach"):
        import torch

        if str(array.dtype).removeprefix("torch.") not in FORMAT:
            raise _no_dtype(where, name, str(array.dtype))
        flat = array.detach().cpu().contiguous().reshape(-1)
        kind, shape, data = str(array.dtype).removeprefix("torch."), tuple(array.shape), flat.view(torch.uint8).numpy()
    elif hasattr(array, "__array__"):
        import numpy

        whole = numpy.asarray(array)
        little = whole.astype(whole.dtype.newbyteorder("<"), copy=False)
        kind, shape = whole.dtype.name, whole.shape
        if kind not in FORMAT:
            raise _no_dtype(where, name, kind)
        data = numpy.ascontiguousarray(little).reshape(-1).view(numpy.uint8)
    else:
        raise EngineStartError(
            f"{where}: {name!r} is {type(array).__name__}; valid: an array of numpy, a tensor of torch"
        )
    return FORMAT[kind], shape, memoryview(data)


def _no_dtype(where: str, name: str, kind: str) -> EngineStartError:
    return EngineStartError(f"{where}: {name!r} has dtype {kind}; valid: {', '.join(FORMAT)}")
