"""The header of a GGUF file: its fields and where its tensors lie, read with every size checked against the file.

GGUF files come from strangers. A count or a length in them is never believed before it is known to fit into the file
and under the limits here, so that a hostile or truncated file is a ConfigError: no crash and no large allocation.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from foreserve.errors import ConfigError

MAX_HEADER_BYTES: Final = 256 * 2**20
MAX_ENTRIES: Final = 65_536
"""Fields, and likewise tensors."""
MAX_ITEMS: Final = 4_000_000
"""Array items over all fields; the largest vocabularies have some 600,000 merges."""
MAX_STRING_BYTES: Final = 2**20

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One field: `type` and, of an array, `item_type` are GGUF's numbers. Arrays are lists of strings or numpy's."""

    type: int
    item_type: int | None = None
    value: Any


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor: `shape` as numpy has it (GGUF's reversed), `offset` from the file's start and `size` in bytes."""

    name: str
    type: Any
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF file says of itself."""

    path: Path
    fields: dict[str, Field]
    tensors: tuple[Tensor, ...]

    def text(self, key: str, default: str = "") -> str:
        """A string field. Raises ConfigError where it is something else."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.path}: the field {key} is not a string")
        return value

    def integer(self, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
        """A whole number from 0 to `most`. Raises ConfigError where it is missing (without `default`) or another."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ConfigError(f"{self.path}: the field {key} is {str(value)[:40]}; expected an integer, 0 to {most}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no. Raises ConfigError where it is something else."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.path}: the field {key} is not a boolean")
        return value

    def strings(self, key: str) -> list[str]:
        """An array of strings, empty where there is none. Raises ConfigError where it is something else."""
        value = self._value(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"{self.path}: the field {key} is not an array of strings")
        return value

    def numbers(self, key: str) -> list[float]:
        """An array of numbers, empty where there is none; one number counts as an array of one."""
        value = self._value(key, [])
        if isinstance(value, np.ndarray):
            items: list[float] = value.tolist()
            return items
        if isinstance(value, (int, float)):
            return [value]
        if value == []:
            return []
        raise ConfigError(f"{self.path}: the field {key} is not an array of numbers")

    def _value(self, key: str, default: Any) -> Any:
        field = self.fields.get(key)
        return default if field is None else field.value


def read_header(path: Path) -> Header:
    """The header of the GGUF file `path`, every size in it checked. Raises ConfigError."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Cursor(path, view).header()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable GGUF file: {error}") from None


class _Cursor:
    """Reads forward through a mapped header and stops at its limits."""

    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self.path = path
        self.view = view
        self.end = min(len(view), MAX_HEADER_BYTES)
        self.at = 0
        self.items = 0

    def header(self) -> Header:
        if self.take(4) != b"GGUF":
            raise self.wrong("it does not begin with the letters GGUF")
        version = self.scalar(4)
        if version & 0xFFFF == 0:
            raise self.wrong("it is written for big-endian machines")
        if version not in (2, 3):
            raise self.wrong(f"its version is {version}; valid: 2, 3")
        tensors, fields = (self.count(what) for what in ("tensors", "fields"))
        if not tensors:
            raise self.wrong("it holds no tensors")
        found: dict[str, Field] = {}
        for _ in range(fields):
            key = self.string()
            if key in found:
                raise self.wrong(f"the field {key} comes twice")
            found[key] = self.field(self.scalar(4))
        infos = [self.tensor() for _ in range(tensors)]
        return Header(path=self.path, fields=found, tensors=self.placed(infos, found))

    def wrong(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}: not a usable GGUF file: {problem}")

    def take(self, size: int) -> bytes:
        if size > self.end - self.at:
            raise self.wrong("it is truncated" if self.end == len(self.view) else "its header is too large")
        self.at += size
        return self.view[self.at - size : self.at]

    def scalar(self, kind: int) -> Any:
        layout = _SCALARS[kind]
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def count(self, what: str) -> int:
        count: int = self.scalar(10)
        if count > MAX_ENTRIES:
            raise self.wrong(f"it claims {count} {what}; at most {MAX_ENTRIES} are read")
        return count

    def string(self) -> str:
        size: int = self.scalar(10)
        if size > MAX_STRING_BYTES:
            raise self.wrong(f"a string claims {size} bytes; at most {MAX_STRING_BYTES} are read")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise self.wrong("a string is not UTF-8") from None

    def field(self, kind: int) -> Field:
        if kind == _STRING:
            return Field(type=kind, value=self.string())
        if kind in _SCALARS:
            return Field(type=kind, value=self.scalar(kind))
        if kind != _ARRAY:
            raise self.wrong(f"a field has the unknown type {kind}")
        item, count = self.scalar(4), self.scalar(10)
        self.items += count
        if self.items > MAX_ITEMS:
            raise self.wrong(f"its arrays claim {self.items} items; at most {MAX_ITEMS} are read")
        if item == _STRING:
            return Field(type=kind, item_type=item, value=[self.string() for _ in range(count)])
        if item not in _SCALARS:
            raise self.wrong(f"an array has items of type {item}, which is not supported")
        layout = np.dtype(_SCALARS[item])
        raw = self.take(count * layout.itemsize)
        return Field(type=kind, item_type=item, value=np.frombuffer(raw, dtype=layout))

    def tensor(self) -> tuple[str, list[int], int, int]:
        name, dimensions = self.string(), self.scalar(4)
        if not 1 <= dimensions <= 4:
            raise self.wrong(f"the tensor {name} has {dimensions} dimensions; valid: 1 to 4")
        return name, [self.scalar(10) for _ in range(dimensions)], self.scalar(4), self.scalar(10)

    def placed(self, infos: list[tuple[str, list[int], int, int]], fields: dict[str, Field]) -> tuple[Tensor, ...]:
        """The tensors with their places, each known to lie inside the file."""
        alignment = fields["general.alignment"].value if "general.alignment" in fields else 32
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self.wrong("general.alignment is not a power of two")
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, sizes, number, offset in infos:
            if name in tensors:
                raise self.wrong(f"the tensor {name} comes twice")
            try:
                kind = GGMLQuantizationType(number)
                block, block_bytes = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise self.wrong(f"the tensor {name} has the unknown type {number}") from None
            elements = 1
            for size in sizes:
                elements *= size  # Python's integers: a product that overflows 64 bits is still seen
            if not elements or sizes[0] % block:
                raise self.wrong(f"the tensor {name} of {kind.name} has the impossible shape {sizes}")
            size = elements // block * block_bytes
            if start + offset + size > len(self.view):
                raise self.wrong(f"it is truncated: the tensor {name} ends beyond the file")
            shape = tuple(reversed(sizes))
            tensors[name] = Tensor(name=name, type=kind, shape=shape, offset=start + offset, size=size)
        return tuple(tensors.values())
