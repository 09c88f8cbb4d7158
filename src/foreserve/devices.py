"""What devices are called where weights can be copied to one."""

from __future__ import annotations

import re
from typing import Final

VALID: Final = "cpu, cuda, cuda:0, cuda:1, …"
"""What is told to people. The stand-in for a device, `host-copy`, is for tests."""

_DEVICE: Final = re.compile(r"cuda(:\d+)?|host-copy(:\d+)?")


def is_device(name: str) -> bool:
    """Whether `name` is that of a device, which has memory of its own; `cpu` is none."""
    return _DEVICE.fullmatch(name) is not None


def check_device(name: str) -> None:
    """Raises ValueError for what is neither a device nor `cpu`."""
    if name != "cpu" and not is_device(name):
        raise ValueError(f"`device` is {name!r}; valid: {VALID}")


def torch_name(name: str) -> str:
    """What torch calls it."""
    return name if name.startswith("cuda") else "cpu"


def wanted_on(name: str) -> str | None:
    """As `WeightsRef.device` has it."""
    return None if name == "cpu" else name
