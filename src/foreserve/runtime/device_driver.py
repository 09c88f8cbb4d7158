"""CUDA's driver, as far as weights need it: its own library through ctypes, so the owner needs no torch and no toolkit.

Signatures, structures and numbers are those of `cuda.h` (virtual memory management, CUDA 11 and later on Linux).
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ushort, c_void_p
from typing import Any, Final

from foreserve.runtime.device import DeviceError, NoRoom

LIBRARY: Final = "FORESERVE_CUDA_DRIVER"
"""The environment variable that names another library than the system's; for tests."""

OUT_OF_MEMORY: Final = 2
PINNED: Final = 1
"""Of memory (CU_MEM_ALLOCATION_TYPE_PINNED), and by it of the location: on a device (CU_MEM_LOCATION_TYPE_DEVICE)."""
POSIX_DESCRIPTOR: Final = 1
READ: Final = 1
READ_WRITE: Final = 3
HAS_VIRTUAL_MEMORY: Final = 102
HAS_DESCRIPTORS: Final = 103
"""Attributes of a device: whether it has addresses of ours, and whether what is there can be handed out."""


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = (("type", c_int), ("id", c_int))


class _Flags(ctypes.Structure):
    _fields_ = (
        ("compression", c_ubyte), ("direct", c_ubyte), ("usage", c_ushort), ("reserved", c_ubyte * 4),
    )  # fmt: skip


class Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", c_int), ("handles", c_int), ("location", Location), ("win32", c_void_p), ("flags", _Flags),
    )  # fmt: skip


class Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", c_int))


class Uuid(ctypes.Structure):
    """CUuuid."""

    _fields_ = (("bytes", c_ubyte * 16),)


_CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetUuid": (c_void_p, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuMemHostAlloc": (c_void_p, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemGetAllocationGranularity": (c_void_p, c_void_p, c_int),
    "cuMemCreate": (c_void_p, c_size_t, c_void_p, c_uint64),
    "cuMemRelease": (c_uint64,),
    "cuMemExportToShareableHandle": (c_void_p, c_uint64, c_int, c_uint64),
    "cuMemImportFromShareableHandle": (c_void_p, c_void_p, c_int),
    "cuMemAddressReserve": (c_void_p, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemAddressFree": (c_uint64, c_size_t),
    "cuMemMap": (c_uint64, c_size_t, c_size_t, c_uint64, c_uint64),
    "cuMemUnmap": (c_uint64, c_size_t),
    "cuMemSetAccess": (c_uint64, c_size_t, c_void_p, c_size_t),
    "cuGetErrorString": (c_int, c_void_p),
}


class Driver:
    """The library. `call` raises DeviceError, in the driver's words, for anything but success."""

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(path)
            self._calls = {name: getattr(library, name) for name in _CALLS}
        except (OSError, AttributeError) as error:
            raise DeviceError(f"there is no driver of CUDA here that could share weights: {error}") from None
        for name, types in _CALLS.items():
            self._calls[name].argtypes = types
            self._calls[name].restype = c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """One call. What it gives out is written to the references among `arguments`."""
        code = self._calls[name](*arguments)
        if code:
            kind = NoRoom if code == OUT_OF_MEMORY else DeviceError
            raise kind(f"{name}: {self._words(code)}")

    def _words(self, code: int) -> str:
        text = c_char_p()
        if self._calls["cuGetErrorString"](code, ctypes.byref(text)) or text.value is None:
            return f"error {code}"
        return f"{text.value.decode(errors='replace')} ({code})"


@functools.cache
def driver() -> Driver:
    """Loaded once. Not in a process that will fork: what the driver holds does not survive that."""
    return Driver(os.environ.get(LIBRARY, "libcuda.so.1"))
