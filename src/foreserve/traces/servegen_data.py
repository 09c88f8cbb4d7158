"""ServeGen's files: for each client its rate and burstiness in ten-minute windows, and lengths in six-hour ones."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from foreserve.errors import ConfigError
from foreserve.traces.files import opened

log = logging.getLogger(__name__)

WINDOW_S: Final = 600.0
"""Where a client has one window alone; else the distance of its first two."""

MAX_FILE_BYTES: Final = 256 * 2**20
MAX_FILES: Final = 20_000
MAX_BYTES: Final = 2 * 2**30
"""Of all files together, which are held as they are."""

INPUTS: Final = ("input_tokens", "text_tokens", "image_tokens", "audio_tokens", "video_tokens")
"""Parts of a prompt, which add up. Other fields (counts, the share of reasoning) are not needed for a trace."""

_CHUNK: Final = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)")
_PAIR: Final = re.compile(r"(\d+(?:\.\d+)?):")


class Window(msgspec.Struct, frozen=True, gc=False):
    """So many requests from `start` on (seconds); gaps of this family and shape."""

    start: float
    rate: float
    family: Literal["Gamma", "Weibull", ""]
    shape: float


class Pdf:
    """A distribution over numbers of tokens, to draw from."""

    def __init__(self, values: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        shares = weights / weights.sum()
        self.mean = float(values @ shares)
        self.variance = float((values - self.mean) ** 2 @ shares)
        self._values = values
        self._cumulated = np.cumsum(shares)

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """A number for each of `uniform` (0 to 1)."""
        places = np.searchsorted(self._cumulated, uniform, side="right")
        return self._values[np.minimum(places, len(self._values) - 1)]


class Client(msgspec.Struct, frozen=True):
    """One client's windows in order, and its datasets (as text, by the second at which each begins, in order)."""

    number: int
    windows: list[Window]
    starts: list[float]
    datasets: list[dict[str, str]]
    where: str

    @property
    def window_s(self) -> float:
        """How long each of its windows is."""
        return self.windows[1].start - self.windows[0].start if len(self.windows) > 1 else WINDOW_S


def pdf(text: str, where: str) -> Pdf | None:
    """The distribution that `text` spells, `{12: 0.5, 13: 0.5}`; `None` for an empty one. Raises ConfigError."""
    try:
        found = msgspec.json.decode(_PAIR.sub(r'"\1":', text), type=dict[str, float])
        values = np.array([round(float(key)) for key in found], dtype=np.int64)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{where}: not a distribution as {{12: 0.5, 13: 0.5}}: {error}") from None
    if not found:
        return None
    weights = np.array(list(found.values()), dtype=np.float64)
    if (values < 0).any() or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
        raise ConfigError(f"{where}: a distribution has numbers of tokens and shares of them, none below 0, not all 0")
    return Pdf(values, weights)


def is_servegen(path: Path) -> bool:
    """Whether there are such files in this folder or archive."""
    if path.is_dir():
        return any(_CHUNK.fullmatch(file.name) for file in path.rglob("chunk-*"))
    return ".tar" in path.suffixes


def read_clients(path: Path) -> list[Client]:
    """The clients of a folder or an archive, in order of their numbers. Raises ConfigError.

    Of some that were published with their rates alone there is nothing to draw lengths from: they are logged.
    """
    files: dict[int, dict[str, bytes]] = {}
    total = 0
    folders: dict[str, None] = {}
    try:
        for name, data in _files(path):
            match = _CHUNK.fullmatch(PurePosixPath(name).name)
            if match is None:
                continue
            if (total := total + len(data)) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            folders[str(PurePosixPath(name).parent)] = None
            files.setdefault(int(match[1]), {})[match[2]] = data
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not files:
        raise ConfigError(f"{path}: no chunk-N-trace.csv in it")
    if len(folders) > 1:
        raise ConfigError(
            f"{path}: several models' traces are in it; valid: one of its folders, {', '.join(sorted(folders))}"
        )
    whole = [number for number in sorted(files) if "trace.csv" in files[number] and "dataset.json" in files[number]]
    if left_out := sorted(set(files) - set(whole)):
        log.warning(
            "%s: %d of %d clients have no lengths (or no rates) in it and are left out: %s",
            path, len(left_out), len(files), ", ".join(map(str, left_out)),
        )  # fmt: skip
    if not whole:
        raise ConfigError(f"{path}: no client has both chunk-N-trace.csv and chunk-N-dataset.json in it")
    return [_client(path, number, files[number]) for number in whole]


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for count, file in enumerate(sorted(path.rglob("chunk-*"))):
            if count == MAX_FILES or file.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"{file}: more than {MAX_FILES} files, or one over {MAX_FILE_BYTES} bytes")
            yield str(file.relative_to(path)), file.read_bytes()
        return
    with opened(path) as raw, tarfile.open(fileobj=raw, mode="r|") as archive:
        for count, member in enumerate(archive):
            if count == MAX_FILES or member.size > MAX_FILE_BYTES:
                raise ValueError(f"{member.name}: more than {MAX_FILES} files, or one over {MAX_FILE_BYTES} bytes")
            content: IO[bytes] | None = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content.read()


def _client(path: Path, number: int, files: dict[str, bytes]) -> Client:
    where = f"{path}: chunk-{number}-dataset.json"
    try:
        data = msgspec.json.decode(files["dataset.json"], type=dict[str, dict[str, str]])
        starts = sorted(data, key=float)
        first = [float(start) for start in starts]
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None
    if not starts:
        raise ConfigError(f"{where}: no lengths in it")
    return Client(
        number=number,
        windows=list(_windows(f"{path}: chunk-{number}-trace.csv", files["trace.csv"])),
        starts=first,
        datasets=[data[start] for start in starts],
        where=where,
    )


def _windows(where: str, data: bytes) -> Iterator[Window]:
    """Rows `start, rate, cv, family, shape, scale`; where nothing came the family is empty."""
    last = -math.inf
    for line, cells in enumerate(csv.reader(io.StringIO(data.decode("utf-8", "replace"))), 1):
        try:
            if len(cells) != 6:
                raise ValueError(f"{len(cells)} columns; expected start, rate, cv, family, shape, scale")
            start, rate, shape = float(cells[0]), float(cells[1]), float(cells[4])
            family = cells[3]
            if not (start > last and 0.0 <= rate < math.inf):
                raise ValueError(f"start {start:g} s, rate {rate:g}; expected starts in order, rates of 0 or more")
            if rate > 0 and (family not in ("Gamma", "Weibull") or not 0.0 < shape < math.inf):
                raise ValueError(f"family {family!r}, shape {shape:g}; valid: Gamma or Weibull, a shape above 0")
        except ValueError as error:
            raise ConfigError(f"{where}: line {line}: {error}") from None
        last = start
        yield Window(start, rate, family if rate > 0 else "", shape)  # type: ignore[arg-type]
