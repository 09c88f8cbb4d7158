"""Memory of a device (a GPU) as the owner and its workers see it: a port with two implementations.

A copy on a device is known by a descriptor, as a file is: the owner writes it once and hands the descriptor out, each
worker maps it read-only. So whoever has mapped one needs its owner no more, and its memory is free with the last who
has it, however he ends.

`device_cuda` is that of CUDA's virtual memory management. `device_host` stands in for it where there is no GPU, so that
everything else runs in tests as it does on one: a second copy in this machine's own memory.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from foreserve.devices import VALID, is_device
from foreserve.errors import EngineStartError

UUID: Final = re.compile("[0-9a-f]{32}")
"""Of a GPU, as its identity has it."""


class DeviceError(EngineStartError):
    """The device, or its driver, cannot do this; why in words."""


class NoRoom(DeviceError):
    """The device has no such memory left now."""


class Allocation(Protocol):
    """Memory of a device in the hands of the owner: `size` bytes, written once and then handed out as `fd`."""

    size: int
    fd: int

    def write(self, at: int, source: int, begin: int, end: int) -> None:
        """Copy the bytes `begin` to `end` of the descriptor `source` to `at`. Several threads may, side by side.

        Raises DeviceError. What is adopted is whole, and is not written.
        """
        ...

    def finish(self) -> None:
        """All is written: the copy has arrived when this returns, and we write no more. Raises DeviceError."""
        ...

    def free(self) -> None:
        """Let go of it. Its memory is free once no worker has it either. Never raises."""
        ...


class DeviceMemory(Protocol):
    """One device, in the owner. Its calls block for as long as the driver takes, and are made by threads."""

    def allocate(self, size: int) -> Allocation:
        """At least `size` bytes. Raises NoRoom, DeviceError."""
        ...

    def adopt(self, fd: int, size: int) -> Allocation:
        """What a worker has of an owner before us; `fd` stays the caller's. Raises DeviceError where it is none."""
        ...

    def takes(self, size: int) -> int:
        """The bytes that an allocation for `size` has: whole pages of the device. Raises DeviceError."""
        ...

    def close(self) -> None:
        """Nothing is asked of it any more. Never raises."""
        ...


class Window(Protocol):
    """A stretch of one worker's addresses through which it sees a copy, at the same place each time.

    `address` is that of its first byte, `torch_device` what torch calls the device it is on.
    """

    address: int
    torch_device: str

    def map(self, fd: int) -> None:
        """Show the copy `fd`, for reading. Raises DeviceError."""
        ...

    def unmap(self) -> None:
        """Show nothing, once the device has done what it was given; the addresses stay ours. Raises DeviceError."""
        ...


def identity(name: str) -> str:
    """What this process calls `name`, as every other process of this machine understands it. Raises DeviceError.

    Processes may number GPUs otherwise (`CUDA_VISIBLE_DEVICES`), so those are named by what is burnt into them.
    """
    if not is_device(name):
        raise DeviceError(f"{name!r} is no device; valid: {VALID}")
    if name.startswith("cuda"):
        from foreserve.runtime.device_cuda import uuid_of

        return f"cuda:{uuid_of(int(name.partition(':')[2] or 0))}"
    return name


def is_identity(word: str) -> bool:
    """Whether this is what `identity` may say, whether there is such a device or not."""
    kind, _, rest = word.partition(":")
    return bool(UUID.fullmatch(rest)) if kind == "cuda" else is_device(word) and word.startswith("host-copy")


def open_memory(identified: str) -> DeviceMemory:
    """The device with this `identity`. Raises DeviceError."""
    kind, _, rest = identified.partition(":")
    if kind == "cuda":
        from foreserve.runtime.device_cuda import CudaMemory

        return CudaMemory(rest)
    if is_device(identified):
        from foreserve.runtime.device_host import HostCopy

        return HostCopy(int(rest) * 2**20 if rest else None)
    raise DeviceError(f"{identified!r} is no device")


def open_window(name: str, size: int) -> Window:
    """Room for `size` bytes of the device that this process calls `name`. Raises DeviceError."""
    if name.startswith("cuda"):
        from foreserve.runtime.device_cuda import CudaWindow

        return CudaWindow(int(name.partition(":")[2] or 0), size)
    from foreserve.runtime.device_host import HostWindow

    return HostWindow(size)
