"""Weights on a GPU by CUDA's virtual memory management: handed out by descriptor, mapped read-only, free with the last.

After NVIDIA's GPU Memory Service: the owner makes physical memory, fills and exports it; a worker imports it and maps
it where it has reserved addresses, for reading. CUDA IPC handles would give less: a worker could write, its addresses
would be others each time, and an exporter that ends before its importers leaves them with something undefined.

NOT YET RUN ON A GPU. What runs in tests is this code against a library of the same signatures over host memory.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ctypes import byref
from typing import Any, Final

from foreserve.runtime.device import DeviceError
from foreserve.runtime.device_driver import (
    HAS_DESCRIPTORS,
    HAS_VIRTUAL_MEMORY,
    PINNED,
    POSIX_DESCRIPTOR,
    READ,
    READ_WRITE,
    Access,
    Location,
    Properties,
    Uuid,
    driver,
)  # fmt: skip

STAGED_BYTES: Final = 8 * 2**20
"""Of one pinned buffer. A thread fills it out of the page cache while others of them are on their way."""
STAGES: Final = 4

_NON_BLOCKING: Final = 1
_WAIT_ASLEEP_UNTIMED: Final = 3
_DEVICE: Final = 1


def uuid_of(ordinal: int) -> str:
    """Of the GPU that this process calls by this number. Raises DeviceError."""
    return _uuid(_device(ordinal))


class _Context:
    """The primary context of one GPU, which torch has too; made current only while a call of ours needs it."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._context = ctypes.c_void_p()
        driver().call("cuDevicePrimaryCtxRetain", byref(self._context), device)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        driver().call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            driver().call("cuCtxPopCurrent_v2", byref(ctypes.c_void_p()))

    def close(self) -> None:
        driver().call("cuDevicePrimaryCtxRelease_v2", self._device)


class CudaMemory:
    """See `device.DeviceMemory`: the GPU with this UUID. It has a context only while something is written."""

    def __init__(self, uuid: str) -> None:
        self._device = _find(uuid)
        self._properties = Properties(
            type=PINNED, handles=POSIX_DESCRIPTOR, location=Location(type=_DEVICE, id=self._device)
        )
        for attribute, words in ((HAS_VIRTUAL_MEMORY, "address"), (HAS_DESCRIPTORS, "hand out")):
            has = ctypes.c_int()
            driver().call("cuDeviceGetAttribute", byref(has), attribute, self._device)
            if not has.value:
                raise DeviceError(f"this GPU, or its driver, cannot {words} memory as sharing needs it")

    def allocate(self, size: int) -> CudaAllocation:
        size = _rounded(size, self._properties)
        handle = ctypes.c_uint64()
        driver().call("cuMemCreate", byref(handle), size, byref(self._properties), 0)
        fd = ctypes.c_int(-1)
        try:
            driver().call("cuMemExportToShareableHandle", byref(fd), handle, POSIX_DESCRIPTOR, 0)
            return CudaAllocation(handle.value, fd.value, size, _Writing(self._device, handle.value, size))
        except BaseException:
            if fd.value >= 0:
                os.close(fd.value)
            driver().call("cuMemRelease", handle)
            raise

    def adopt(self, fd: int, size: int) -> CudaAllocation:
        handle = _imported(fd)
        try:
            self._check(handle, size)
            return CudaAllocation(handle, os.dup(fd), size, None)
        except BaseException:
            driver().call("cuMemRelease", handle)
            raise

    def _check(self, handle: int, size: int) -> None:
        """No call tells the size of a handle, so it is tried: a smaller one cannot be mapped to so many addresses.

        That a larger one cannot either is what the driver's documentation lets expect; it was not tried on a GPU.
        """
        if size <= 0 or size != _rounded(size, self._properties):
            raise DeviceError(f"a copy has whole pages of the GPU, not {size} bytes")
        mapping = _Mapping(self._device, size)
        try:
            mapping.map(handle, READ)
        except DeviceError as error:
            raise DeviceError(f"it is not of {size} bytes: {error}") from None
        finally:
            mapping.close()

    def takes(self, size: int) -> int:
        return _rounded(size, self._properties)

    def close(self) -> None:
        pass


class CudaAllocation:
    """See `device.Allocation`. The handle keeps the memory for who comes, the descriptor is what they get."""

    def __init__(self, handle: int, fd: int, size: int, writing: _Writing | None) -> None:
        self.size = size
        self.fd = fd
        self._handle = handle
        self._writing = writing

    def write(self, at: int, source: int, begin: int, end: int) -> None:
        assert self._writing is not None
        self._writing.write(at, source, begin, end)

    def finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.finish()

    def free(self) -> None:
        with suppress(DeviceError):
            self.finish()
        os.close(self.fd)
        with suppress(DeviceError):
            driver().call("cuMemRelease", self._handle)


class _Writing:
    """A copy while it is filled: mapped for us alone, by one stream, through a few pinned buffers."""

    def __init__(self, device: int, handle: int, size: int) -> None:
        self._context = _Context(device)
        self._mapping: _Mapping | None = None
        self._stream = ctypes.c_void_p()
        self._stages: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._made: list[tuple[Any, Any]] = []
        try:
            with self._context():
                self._mapping = _Mapping(device, size)
                self._mapping.map(handle, READ_WRITE)
                driver().call("cuStreamCreate", byref(self._stream), _NON_BLOCKING)
                for _ in range(STAGES):
                    self._stage()
        except BaseException:
            with suppress(DeviceError):
                self._close()
            raise

    def _stage(self) -> None:
        buffer, event = ctypes.c_void_p(), ctypes.c_void_p()
        driver().call("cuEventCreate", byref(event), _WAIT_ASLEEP_UNTIMED)
        self._made.append((buffer, event))
        driver().call("cuMemHostAlloc", byref(buffer), STAGED_BYTES, 0)
        self._stages.put((buffer, event))

    def write(self, at: int, source: int, begin: int, end: int) -> None:
        assert self._mapping is not None
        while begin < end:
            buffer, event = stage = self._stages.get()
            try:
                with self._context():
                    driver().call("cuEventSynchronize", event)  # what it carried before has left it
                    room = (ctypes.c_char * min(end - begin, STAGED_BYTES)).from_address(buffer.value)
                    got = os.preadv(source, [room], begin)
                    if not got:
                        raise DeviceError("the host copy is shorter than it was")
                    place = self._mapping.address + at
                    driver().call("cuMemcpyHtoDAsync_v2", place, buffer, got, self._stream)
                    driver().call("cuEventRecord", event, self._stream)
            finally:
                self._stages.put(stage)
            begin += got
            at += got

    def finish(self) -> None:
        try:
            with self._context():
                driver().call("cuStreamSynchronize", self._stream)
        finally:
            self._close()

    def _close(self) -> None:
        """Each by itself: what cannot be freed keeps nothing else from it. The device is done with all of it before."""
        call = driver().call
        with ExitStack() as last:  # in reverse order, whatever any of them raises
            last.callback(self._context.close)
            last.enter_context(self._context())
            if self._mapping is not None:
                last.callback(self._mapping.close)
            for buffer, event in self._made:
                last.callback(call, "cuEventDestroy_v2", event)
                if buffer.value:
                    last.callback(call, "cuMemFreeHost", buffer)
            if self._stream.value:
                last.callback(call, "cuStreamDestroy_v2", self._stream)
                last.callback(call, "cuStreamSynchronize", self._stream)


class CudaWindow:
    """See `device.Window`. Keeps the primary context, which torch needs too: it is made beside the load."""

    def __init__(self, ordinal: int, size: int) -> None:
        self._device = _device(ordinal)
        self._context = _Context(self._device)
        self.torch_device = f"cuda:{ordinal}"
        with self._context():
            properties = Properties(type=PINNED, handles=POSIX_DESCRIPTOR, location=Location(_DEVICE, self._device))
            self._mapping = _Mapping(self._device, _rounded(size, properties))
        self.address = self._mapping.address

    def map(self, fd: int) -> None:
        with self._context():
            handle = _imported(fd)
            try:
                self._mapping.map(handle, READ)
            finally:
                driver().call("cuMemRelease", handle)  # the mapping keeps the memory

    def unmap(self) -> None:
        with self._context():
            driver().call("cuCtxSynchronize")
            self._mapping.unmap()


class _Mapping:
    """Reserved addresses, with memory behind them or without."""

    def __init__(self, device: int, size: int) -> None:
        address = ctypes.c_uint64()
        driver().call("cuMemAddressReserve", byref(address), size, 0, 0, 0)
        self.address = address.value
        self._device = device
        self._size = size
        self._mapped = False
        self._lock = threading.Lock()

    def map(self, handle: int, access: int) -> None:
        with self._lock:
            driver().call("cuMemMap", self.address, self._size, 0, handle, 0)
            self._mapped = True
            granted = Access(location=Location(_DEVICE, self._device), flags=access)
            try:
                driver().call("cuMemSetAccess", self.address, self._size, byref(granted), 1)
            except BaseException:
                with suppress(DeviceError):
                    self._unmap()
                raise

    def unmap(self) -> None:
        with self._lock:
            self._unmap()

    def _unmap(self) -> None:
        if self._mapped:
            driver().call("cuMemUnmap", self.address, self._size)
            self._mapped = False

    def close(self) -> None:
        try:
            self.unmap()
        finally:
            driver().call("cuMemAddressFree", self.address, self._size)


def _device(ordinal: int) -> int:
    device = ctypes.c_int()
    driver().call("cuDeviceGet", byref(device), ordinal)
    return device.value


def _uuid(device: int) -> str:
    found = Uuid()
    driver().call("cuDeviceGetUuid", byref(found), device)
    return bytes(found.bytes).hex()


def _find(uuid: str) -> int:
    count = ctypes.c_int()
    driver().call("cuDeviceGetCount", byref(count))
    for ordinal in range(count.value):
        if _uuid(device := _device(ordinal)) == uuid:
            return device
    raise DeviceError(f"the memory owner does not see the GPU {uuid}; it sees {count.value} (CUDA_VISIBLE_DEVICES)")


def _imported(fd: int) -> int:
    handle = ctypes.c_uint64()
    driver().call("cuMemImportFromShareableHandle", byref(handle), ctypes.c_void_p(fd), POSIX_DESCRIPTOR)
    return handle.value


def _rounded(size: int, properties: Properties) -> int:
    step = ctypes.c_size_t()
    driver().call("cuMemGetAllocationGranularity", byref(step), byref(properties), 0)
    return -(-size // step.value) * step.value
