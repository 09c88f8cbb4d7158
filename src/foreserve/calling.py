"""What a caller gives a function: plain arguments, uploaded files and tensors, as they cross to its worker."""

from __future__ import annotations

from typing import Any

import msgspec

from foreserve.tensors import Tensor


class File(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file. A parameter annotated with it takes one, `list[File]` any number.

    `name` and `content_type` are what the client says of it, and nobody has checked them.
    """

    data: bytes
    name: str = ""
    content_type: str = "application/octet-stream"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of one call: its keyword arguments, each in one of four ways.

    `args` are plain values and bytes. With `lax` they come from a form, so text may stand for a number. `as_tensors`
    asks for the result as `Output`s in place of plain values. Items of those in `fed` come while it runs.
    """

    args: dict[str, Any] = {}
    files: dict[str, list[File]] = {}
    tensors: dict[str, Tensor] = {}
    fed: tuple[str, ...] = ()
    lax: bool = False
    as_tensors: bool = False

    @property
    def names(self) -> list[str]:
        """Of all its arguments."""
        return [*self.args, *self.files, *self.tensors, *self.fed]


class Items(msgspec.Struct, frozen=True, kw_only=True):
    """More items for a fed argument, as they are carried to its worker; with `last`, there are no more of that one."""

    name: str
    items: list[Any] = []
    last: bool = False


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One named tensor of a result."""

    name: str
    tensor: Tensor
