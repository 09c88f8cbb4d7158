"""Lines of a text file, plain or compressed, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from foreserve.errors import ConfigError

MAX_LINE_BYTES = 16 * 2**20


def lines(path: Path, first: int = 1) -> Iterator[tuple[int, str]]:
    """The lines that are not blank from number `first` on, each with its number. `.xz` and `.gz` are read as they are.

    Raises ConfigError when the file cannot be read, is no UTF-8 or has a line over 16 MiB.
    """
    for number, text in any_lines(path, first):
        if isinstance(text, ValueError):
            raise ConfigError(f"{path}: line {number}: {text}")
        yield number, text


def any_lines(path: Path, first: int = 1) -> Iterator[tuple[int, str | ValueError]]:
    """As `lines`, with the error in place of a line that is no UTF-8."""
    with reading(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number < first:
                continue
            if len(raw) > MAX_LINE_BYTES:
                raise ConfigError(f"{path}: line {number}: longer than {MAX_LINE_BYTES} bytes")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield number, ValueError(f"not UTF-8 ({error.reason})")
            else:
                if text:
                    yield number, text


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Its bytes, unpacked. Raises ConfigError where it cannot be read, or is damaged or cut off."""
    try:
        with opened(path) as file:
            yield file
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


def count_lines(path: Path) -> int:
    """The lines of a plain file; 0 of a compressed one, or one that cannot be read: counting would mean reading it."""
    if path.suffix in (".xz", ".gz"):
        return 0
    try:
        with path.open("rb") as file:
            whole, last = 0, b""
            while block := file.read(2**20):
                whole += block.count(b"\n")
                last = block[-1:]
            return whole + (last not in (b"", b"\n"))
    except OSError:
        return 0


def opened(path: Path) -> BinaryIO:
    """Its bytes, unpacked. Raises OSError."""
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, packed as its name says, that takes its place when the block has ended without an error.

    Raises ConfigError when it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with _writable(part, path.suffix) as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def _writable(path: Path, suffix: str) -> IO[bytes]:
    if suffix == ".xz":
        return cast(IO[bytes], lzma.open(path, "wb", preset=1))
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "wb", compresslevel=6))
    return path.open("wb")
