"""Any trace that is known, by its content or by its format's name."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Final

from foreserve.errors import ConfigError
from foreserve.registry import choices
from foreserve.traces import azure, mooncake, own, servegen, vidur
from foreserve.traces.files import lines
from foreserve.traces.row import Trace
from foreserve.traces.servegen_data import is_servegen

FORMATS: Final = {
    "foreserve": own.LOOKS,
    "azure": azure.LOOKS,
    "mooncake": mooncake.LOOKS,
    "vidur": vidur.LOOKS,
    "servegen": servegen.LOOKS,
}
"""The formats by name, and what each looks like."""


def open_trace(
    path: str | PathLike[str],
    *,
    format: str = "auto",
    skip_bad: bool = False,
    rate: float | None = None,
    seed: int = 0,
    sort: bool = False,
) -> Trace:
    """A trace that streams from its file each time it is iterated, in order of arrival, in bounded memory.

    Files may be packed with xz or gzip. With `skip_bad` malformed rows are left out and counted (`Trace.skipped`).
    `rate` (requests a second) and `seed` are for formats whose arrivals are drawn. Rows may be out of order within
    10,000 of them; with `sort` in any order, which takes a pass and temporary files before the first row.

    Raises ConfigError here, or while it is read, with file, line and what is wrong.
    """
    path = Path(path)
    if format == "auto":
        format = recognise(path)
    if format == "foreserve":
        return own.open_own(path, skip_bad=skip_bad, sort=sort)
    if format == "azure":
        return azure.open_azure(path, skip_bad=skip_bad, sort=sort)
    if format == "mooncake":
        return mooncake.open_mooncake(path, skip_bad=skip_bad, sort=sort)
    if format == "vidur":
        return vidur.open_vidur(path, rate=rate, seed=seed, skip_bad=skip_bad)
    if format == "servegen":
        return servegen.open_servegen(path, seed=seed)
    raise ConfigError(f"{path}: no trace format is called {format!r}{choices(format, ['auto', *FORMATS])}")


def recognise(path: Path) -> str:
    """The format that a file's content shows. Raises ConfigError, with what each looks like, where it is none."""
    if path.is_dir() or ".tar" in path.suffixes:
        if is_servegen(path):
            return "servegen"
        raise ConfigError(f"{path}: a folder without a trace in it; valid: {servegen.LOOKS}")
    head = next(lines(path), None)
    if head is None:
        raise ConfigError(f"{path}: no arrivals in it: the file is empty")
    number, text = head
    for name, module in (("foreserve", own), ("azure", azure), ("mooncake", mooncake), ("vidur", vidur)):
        if module.recognise(text):
            return name
    valid = "; ".join(f"{name}: {looks}" for name, looks in FORMATS.items())
    raise ConfigError(
        f"{path}: line {number}: no known trace begins with {text[:80]!r}; valid: {valid}; "
        "a log of another kind: foreserve trace import"
    )
