"""Lines of a text file, plain or compressed, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from foreserve.errors import ConfigError

MAX_LINE_BYTES = 16 * 2**20


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1. `.xz` and `.gz` are read as they are.

    Raises ConfigError when the file cannot be read, is no UTF-8 or has a line over 16 MiB.
    """
    try:
        with _open(path) as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise ConfigError(f"{path}: line {number}: longer than {MAX_LINE_BYTES} bytes")
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise ConfigError(f"{path}: line {number}: not UTF-8 ({error.reason})") from None
                if text:
                    yield number, text
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")
