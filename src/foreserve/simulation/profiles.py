"""Engine profiles as files: small, readable YAML, one for each service, in the state folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import yaml

from foreserve.engines.profile import EngineProfile, checked
from foreserve.errors import ConfigError
from foreserve.parsing import parse
from foreserve.yamlfile import Document

FOLDER: Final = "profiles"
"""Where they lie within a state folder."""

DIGITS: Final = 3
"""Significant ones of a written figure: no measurement is better than that."""

HEADER: Final = (
    "# What one engine takes on one machine: seconds, tokens, bytes. Made by `foreserve calibrate` and read by\n"
    "# `foreserve simulate`; docs/calibration.md explains each line. It may be changed by hand.\n"
)


def profile_file(service: str, folder: Path) -> Path:
    """Where the profile of a service lies in a state folder. A slash in its name is written as %2F."""
    return folder / FOLDER / f"{quote(service, safe='@')}.yaml"


def profile_for(service: str, folder: Path) -> EngineProfile | None:
    """The profile that was measured of a service, `None` where there is none. Raises ConfigError as `read_profile`."""
    file = profile_file(service, folder)
    return read_profile(file) if file.is_file() else None


def read_profile(path: Path) -> EngineProfile:
    """Raises ConfigError that names the file, the line, what is wrong and what is valid."""
    document = Document.read(path)
    with document.lines_in_errors():
        whole = f"{document.where}: profile"
        try:
            profile = parse({} if document.data is None else document.data, EngineProfile, whole)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{whole}.", f"{document.where}: ", 1)) from None
    try:
        return checked(profile)
    except ValueError as error:
        raise ConfigError(f"{document.where}: {error}") from None


def save_profile(profile: EngineProfile, path: Path) -> None:
    """Write it, with its figures rounded. Folders are made. Raises ConfigError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(profile), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def dump(profile: EngineProfile) -> str:
    """As YAML: tables by rows, figures with three significant digits, what is `None` left out."""
    data = {key: value for key, value in rounded(msgspec.to_builtins(profile)).items() if value not in (None, [], {})}
    return HEADER + yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Numbers of one list on one line, everything else on lines of its own."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        flow = all(isinstance(each, int | float) for each in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _Dumper.represent_list)


def summary(profile: EngineProfile) -> str:
    """A profile in three lines for people."""
    prefill, decode = profile.prefill, profile.decode
    return (
        f"{profile.name or 'engine'}: {profile.batching}, {profile.slots} slots, {profile.kv_tokens} tokens of KV, "
        f"ready after {profile.start_s:.3g} s\n"
        f"prefill: {prefill.tokens[-1] / max(prefill.seconds[-1][0], 1e-9):.3g} tokens/s "
        f"({1000 * prefill.seconds[-1][0]:.3g} ms for {prefill.tokens[-1]})\n"
        f"decode: {1000 * decode.seconds[0][0]:.3g} ms a token alone, "
        f"{decode.sequences[-1] / max(decode.seconds[-1][0], 1e-9):.3g} tokens/s with {decode.sequences[-1]} together"
    )


def rounded(value: Any) -> Any:
    """Floats with as many digits as are written, however deep they are; everything else as it is."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value
