"""What machine this is, for people who read a measurement. No name of the host."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Processor and cores that this process may use, in words."""
    return f"{processor()}, {cores()} core{'s' * (cores() > 1)}"


def processor() -> str:
    """Its model, as far as it is known."""
    return told("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def told(path: str, key: str) -> str:
    """The first value of a key in a file of lines `key: value`; empty where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")
