"""The words of `foreserve bench` turned into what a load generator takes, with errors that name the option."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from foreserve.errors import ConfigError
from foreserve.loadgen import arrivals as arriving
from foreserve.loadgen.client import PATHS, Endpoint
from foreserve.registry import choices


class Process(StrEnum):
    """Arrival processes by name."""

    POISSON = "poisson"
    CONSTANT = "constant"
    GAMMA = "gamma"
    CLOSED = "closed"
    TRACE = "trace"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What load is asked for, as its options say it."""

    process: Process
    rate: float | None
    cv: float | None
    clients: int | None
    trace: str | None
    rate_scale: float
    trace_lengths: bool
    prompts: str | None
    shuffle: bool
    seed: int


def process_meant(name: Process | None, trace: Path | None, clients: int | None, cv: float | None) -> Process:
    """The process that is named, or that the options imply. Raises ConfigError for options of another one."""
    needs = {Process.TRACE: ("--trace", trace), Process.CLOSED: ("--clients", clients), Process.GAMMA: ("--cv", cv)}
    implied = [process for process, (_, value) in needs.items() if value is not None]
    chosen = name or (implied[0] if implied else Process.POISSON)
    for process in implied:
        if process is not chosen:
            raise ConfigError(f"{needs[process][0]} belongs to --arrivals {process}, not to {chosen}")
    if chosen in needs and chosen not in implied:
        raise ConfigError(f"--arrivals {chosen} needs {needs[chosen][0]}")
    return chosen


def arrival_times(
    load: Load, rng: arriving.Generator
) -> Iterator[arriving.Arrival] | list[arriving.Arrival] | arriving.ClosedLoop:
    """The arrivals of a load: a list from a trace, else drawn with `rng` without end.

    Raises ConfigError for options that contradict each other.
    """
    if load.process is not Process.TRACE and (load.rate_scale != 1.0 or load.trace_lengths):
        raise ConfigError("--rate-scale and --trace-lengths need --trace")
    if load.process is Process.CLOSED:
        if load.rate is not None:
            raise ConfigError("--rate has no meaning with --clients: each sends when its last answer has ended")
        return arriving.ClosedLoop(load.clients or 0)
    if load.process is Process.TRACE:
        rows = arriving.trace(Path(load.trace or ""))
        speed = load.rate_scale if load.rate is None else load.rate / arriving.mean_rate(rows)
        if load.rate is not None and load.rate_scale != 1.0:
            raise ConfigError("--rate and --rate-scale both scale the trace; give one")
        return list(arriving.scaled(rows, speed))
    rate = 1.0 if load.rate is None else load.rate
    if load.process is Process.CONSTANT:
        return arriving.constant(rate)
    return arriving.gamma(rate, load.cv or 1.0, rng) if load.process is Process.GAMMA else arriving.poisson(rate, rng)


def endpoint_named(name: str) -> Endpoint:
    """The endpoint of that name."""
    for known in PATHS:
        if known == name:
            return known
    raise ConfigError(f"--endpoint: {name!r} is none{choices(name, PATHS)}")


def extra_fields(text: str | None) -> dict[str, Any]:
    """Body fields from a JSON object."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"--extra: expected a JSON object: {error}") from None


def header_fields(given: list[str], api_key_env: str | None, slo_ms: float | None, send_slo: bool) -> dict[str, str]:
    """Headers from `Name: value`, a key from the environment and a deadline (milliseconds)."""
    headers: dict[str, str] = {}
    if api_key_env is not None:
        if api_key_env not in os.environ:
            raise ConfigError(f"--api-key-env: the environment has no {api_key_env}")
        headers["authorization"] = f"Bearer {os.environ[api_key_env]}"
    if send_slo:
        if slo_ms is None:
            raise ConfigError("--send-slo needs --slo-ms")
        headers["x-slo-ms"] = f"{slo_ms:g}"
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f"--header: {text!r} is not 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


def check_writable(where: str | Path | None) -> None:
    """Raises ConfigError before a run rather than after it, when its result could not be written."""
    if where is None:
        return
    path = Path(where)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{path}: cannot be written")
