"""Mapped weights as arrays and tensors, without a copy: all workers of a machine look at the same memory.

The mapping is read-only. numpy refuses a write with ValueError, torch with RuntimeError; what gets past both ends its
own process and changes nothing. On a device nothing refuses before: a write there ends the process.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

from foreserve.devices import torch_name
from foreserve.engines.binding import bind
from foreserve.runtime.leases import Mapped, Pending, WeightsError
from foreserve.runtime.safetensors import DTYPES, Tensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from foreserve.runtime.device import Window

log = logging.getLogger(__name__)

NUMPY: Final = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "I32": "int32",
    "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""By dtype of the format; numpy itself has no BF16 and no F8."""

TORCH: Final = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


class Weights:
    """Tensors by name, of weights that are there or on their way: every method waits until they are.

    `timeout_s` bounds that wait; WeightsError says why they cannot be had. Those that are declared on a device are
    tensors of torch there: in the copy that all workers share, or in one of this process's own where that cannot be.
    """

    def __init__(self, pending: Pending, timeout_s: float | None = None) -> None:
        self._pending = pending
        self._timeout_s = timeout_s
        self._own: dict[str, torch.Tensor] = {}
        """On a device of which no copy could be shared."""

    @property
    def mapped(self) -> Mapped:
        """The image itself."""
        return self._pending.wait(self._timeout_s)

    @property
    def device(self) -> str:
        """Where tensors of torch are, as torch calls it."""
        placed = self._pending.placed
        return "cpu" if placed is None else torch_name(placed.device)

    @property
    def shared(self) -> bool:
        """Whether tensors of torch are in memory that all workers share."""
        return self._window() is not None or self._pending.placed is None

    def names(self) -> list[str]:
        """Of all tensors, in the order of the file."""
        return list(self.mapped.layout)

    def numpy(self, name: str) -> np.ndarray[Any, Any]:
        """A read-only array over the mapping. BF16 and F8, which numpy lacks, need the package ml_dtypes."""
        import numpy

        tensor = self._find(name)
        flat = numpy.frombuffer(self.mapped.data(name), dtype=_numpy_dtype(tensor.dtype, name))
        return flat.reshape(tensor.shape)

    def torch(self, name: str, guarded: bool = True) -> torch.Tensor:
        """A tensor over the mapping; one that its file has not aligned is a private copy.

        A write to a `guarded` one, or asking for its address, raises RuntimeError, and reading goes as ever. Code that
        reads through a pointer that might as well write wants it otherwise; a write then ends the process.
        """
        import torch

        tensor, mapped = self._find(name), self.mapped
        dtype = getattr(torch, TORCH[tensor.dtype], None)
        if dtype is None:
            raise WeightsError(f"tensor {name!r} is {tensor.dtype}, which torch {torch.__version__} does not have")
        if tensor.begin == tensor.end:
            return torch.empty(tensor.shape, dtype=dtype, device=self.device)
        if self._pending.placed is not None:
            on_device: torch.Tensor = self._on_device(name, tensor, dtype)
            return on_device
        if (address(mapped) + tensor.begin) % DTYPES[tensor.dtype]:
            return torch.frombuffer(bytearray(mapped.data(name)), dtype=dtype).reshape(tensor.shape)
        made = torch.frombuffer(_window(mapped, tensor), dtype=dtype).reshape(tensor.shape)
        if guarded and hasattr(torch._C, "_set_throw_on_mutable_data_ptr"):
            # Inference tensors are no such guard: torch tells of a write to one after it has written.
            torch._C._set_throw_on_mutable_data_ptr(made)
        return made

    def _window(self) -> Window | None:
        placed = self._pending.placed
        if placed is None:
            return None
        _ = self.mapped  # where they cannot be had at all that is what is told
        return placed.wait(self._timeout_s)

    def _on_device(self, name: str, tensor: Tensor, dtype: Any) -> Any:
        import torch

        if self.device != "cpu" and not torch.cuda.is_available():
            raise WeightsError(
                f"{self._where()} are wanted on {self.device}, and torch {torch.__version__} sees no GPU"
            )
        placed, mapped, window = self._pending.placed, self.mapped, self._window()
        assert placed is not None
        begin, size = tensor.begin - placed.begin, tensor.end - tensor.begin
        if window is not None and not (window.address + begin) % DTYPES[tensor.dtype]:
            return _of_device(window, begin, size).view(dtype).reshape(tensor.shape)
        if name not in self._own:
            if not self._own:
                log.warning("%s: a copy of this process's own is on %s: %s", self._where(), self.device, placed.error)
            made = torch.frombuffer(bytearray(mapped.data(name)), dtype=dtype).reshape(tensor.shape)
            self._own[name] = made.to(self.device)
        return self._own[name]

    def bind(self, module: nn.Module, prefix: str = "") -> None:
        """Let all parameters of `module` be these tensors, none copied: see `binding.bind`."""
        bind(module, self.names(), self.torch, prefix, self._where(), self.device)

    def _find(self, name: str) -> Tensor:
        try:
            return self.mapped.layout[name]
        except KeyError:
            from foreserve.registry import choices

            raise WeightsError(
                f"{self._where()}: no tensor is called {name!r}{choices(name, self.names()[:50])}"
            ) from None

    def _where(self) -> str:
        return f"weights {self._pending.ref.name!r}"


def _numpy_dtype(dtype: str, name: str) -> Any:
    import numpy

    if dtype in NUMPY:
        return numpy.dtype(NUMPY[dtype])
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ModuleNotFoundError:
        raise WeightsError(
            f"tensor {name!r} is {dtype}, which numpy lacks; use .torch({name!r}), or install the package ml_dtypes"
        ) from None
    return numpy.dtype(getattr(ml_dtypes, TORCH[dtype]))


def address(mapped: Mapped) -> int:
    """Where the mapping begins in this process's memory."""
    import numpy

    return int(numpy.frombuffer(mapped.image, dtype=numpy.uint8).ctypes.data)


def _of_device(window: Window, begin: int, size: int) -> torch.Tensor:
    """Bytes of the window as a tensor over them."""
    import torch

    if window.torch_device == "cpu":
        memory = (ctypes.c_char * size).from_address(window.address + begin)
        memory.window = window  # type: ignore[attr-defined]  # torch holds the memory, that the window
        return torch.frombuffer(memory, dtype=torch.uint8)
    return torch.as_tensor(_CudaArray(window, begin, size), device=window.torch_device)


class _CudaArray:
    """Bytes on a GPU, shown as libraries do (CUDA array interface, version 2). torch holds it, it the window."""

    def __init__(self, window: Window, begin: int, size: int) -> None:
        self.window = window
        # torch refuses to look at what says that it is read-only; the addresses are all the same.
        place = (window.address + begin, False)
        self.__cuda_array_interface__ = {"version": 2, "typestr": "|u1", "shape": (size,), "data": place}


def _window(mapped: Mapped, tensor: Tensor) -> Any:
    """The tensor's bytes as a buffer that claims to be writable: torch warns of any other. The mapping is not."""
    window = (ctypes.c_char * (tensor.end - tensor.begin)).from_address(address(mapped) + tensor.begin)
    window.mapped = mapped  # type: ignore[attr-defined]  # torch holds the window, the window the mapping
    return window
