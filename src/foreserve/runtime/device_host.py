"""A device that is none: copies in this machine's own memory, handed out, mapped and given back as those on a GPU are.

For tests on machines without a GPU (`device="host-copy"`, or `"host-copy:64"` for one with 64 MiB in all).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from typing import Final

from foreserve.runtime.device import DeviceError, NoRoom
from foreserve.runtime.memory_sources import is_sealed, memory, seal

_FAILED: Final = ctypes.c_void_p(-1).value
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_PROT_NONE: Final = 0


class HostCopy:
    """See `device.DeviceMemory`; `capacity` bytes in all (`None`: no bound)."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._used = 0

    def allocate(self, size: int) -> HostAllocation:
        self._take(size)
        return HostAllocation(self, memory(), size)

    def adopt(self, fd: int, size: int) -> HostAllocation:
        if not is_sealed(fd) or os.fstat(fd).st_size != size:
            raise DeviceError("it is not sealed, or not of that size")
        self._take(size)
        return HostAllocation(self, os.dup(fd), size)

    def takes(self, size: int) -> int:
        return size

    def close(self) -> None:
        pass

    def _take(self, size: int) -> None:
        with self._lock:
            if self._capacity is not None and self._used + size > self._capacity:
                raise NoRoom(f"{self._used} of its {self._capacity} bytes are in use, and {size} more are wanted")
            self._used += size

    def returned(self, size: int) -> None:
        """An allocation is free."""
        with self._lock:
            self._used -= size


class HostAllocation:
    """See `device.Allocation`."""

    def __init__(self, device: HostCopy, fd: int, size: int) -> None:
        self._device = device
        self.size = size
        self.fd = fd

    def write(self, at: int, source: int, begin: int, end: int) -> None:
        while begin < end:
            data = os.pread(source, min(end - begin, 2**20), begin)
            if not data:
                raise DeviceError("the host copy is shorter than it was")
            os.pwrite(self.fd, data, at)
            begin += len(data)
            at += len(data)

    def finish(self) -> None:
        sealed = seal(self.fd)
        os.close(self.fd)
        self.fd = sealed

    def free(self) -> None:
        os.close(self.fd)
        self._device.returned(self.size)


class HostWindow:
    """See `device.Window`. Reading where nothing is shown ends the process, as it does on a GPU."""

    torch_device = "cpu"

    def __init__(self, size: int) -> None:
        self._size = size
        self.address = 0
        self.address = self._at(_PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1)

    def map(self, fd: int) -> None:
        self._at(mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd)

    def unmap(self) -> None:
        self._at(_PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED, -1)

    def _at(self, protection: int, flags: int, fd: int) -> int:
        call = ctypes.CDLL(None, use_errno=True).mmap
        call.restype = ctypes.c_void_p
        call.argtypes = (
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
        )  # fmt: skip
        found = call(self.address or None, self._size, protection, flags, fd, 0)
        if found is None or found == _FAILED:
            raise DeviceError(f"{self._size} bytes cannot be mapped: {os.strerror(ctypes.get_errno())}")
        return int(found)
