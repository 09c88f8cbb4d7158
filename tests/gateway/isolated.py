"""Functions that do what they should not. Their workers import this file by its path."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import foreserve as fs


def _die(how: str) -> None:
    if how == "segv":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(7)


@fs.function(max_running=4, idempotent=True)
def once(marker: str = "", how: str = "", wait_s: float = 0.0) -> int:
    """Dies where `marker` is not there yet."""
    if marker and not Path(marker).exists():
        Path(marker).touch()
        _die(how)
    time.sleep(wait_s)
    return os.getpid()


@fs.function(max_running=4)
def risky(how: str = "", wait_s: float = 0.0) -> int:
    time.sleep(wait_s)
    _die(how)
    return os.getpid()


@fs.function(max_running=2, timeout_s=0.5)
def late(how: str = "") -> int:
    while how == "spin":
        pass
    if how == "sleep":
        time.sleep(60)
    return os.getpid()


@fs.function
def large(size: int = 0) -> bytes:
    if size < 0:
        return bytearray(1 << 60)
    return bytes(size)


@fs.function(memory_mb=64)
def leaky(mib: int = 0) -> int:
    kept = [bytearray(1 << 20) for _ in range(mib)]
    return len(kept)


@fs.function(batch=4, batch_wait_s=0.3, idempotent=True)
def batched(how: list[str]) -> list[int]:
    for each in how:
        _die(each)
    return [os.getpid()] * len(how)


@fs.function(replicas=[0, 1], scaling={"idle_s": 0.3, "every_s": 0.1})
def rare() -> int:
    return os.getpid()
