"""What an engine takes, measured once: the tables that the simulated engine interpolates. Small and readable.

Times are in seconds, lengths in tokens, memory in bytes. `foreserve calibrate` makes one of a real engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec


class PrefillTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seconds[i][j]`: a step that computes `tokens[i]` of prompts after `before[j]` of context, and nothing else."""

    tokens: list[int]
    before: list[int]
    seconds: list[list[float]]


class DecodeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seconds[i][j]`: a step that gives each of `sequences[i]` one token, with `context[j]` tokens held by each."""

    sequences: list[int]
    context: list[int]
    seconds: list[list[float]]


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine on one machine.

    A step of a continuous engine decodes for all that run and computes at most `max_batched_tokens` tokens in all, the
    rest of them of waiting prompts; `None`: a prompt is computed whole, and decoding stands still meanwhile. When a
    step does both it takes the prefill's time and `mixing` of the decode's. `change_s` is added to a step that computes
    another number of tokens than the one before it: some engines set up anew what depends on it. KV is given out in
    blocks of `block_tokens`, and with `prefix_caching` whole blocks of a prompt that are still there cost nothing.
    `start_s` is the time until it is ready, `overhead_s` what is added before a request's first token by everything but
    the engine. `device_bytes`/`host_bytes` are for people and for the fleet.
    """

    format: Literal[1] = 1
    name: str = ""
    machine: str = ""
    measured: str = ""
    batching: Literal["continuous", "static"] = "continuous"
    slots: int
    kv_tokens: int
    context_tokens: int
    prefill: PrefillTable
    decode: DecodeTable
    max_batched_tokens: int | None = None
    mixing: float = 1.0
    change_s: float = 0.0
    block_tokens: int = 32
    prefix_caching: bool = False
    start_s: float = 0.0
    overhead_s: float = 0.0
    host_bytes: int = 0
    device_bytes: int = 0
    spread: dict[str, list[float]] = {}
    """For people: figures by name with the lowest and highest that was measured."""
    notes: list[str] = []


def linear(
    *,
    slots: int = 16,
    kv_tokens: int = 65_536,
    context_tokens: int = 8192,
    prefill_s_per_token: float = 0.0005,
    decode_s: float = 0.02,
    decode_s_per_seq: float = 0.001,
    start_s: float = 0.0,
    batching: Literal["continuous", "static"] = "continuous",
) -> EngineProfile:
    """A profile of two straight lines, for load tests and where nothing was measured."""
    if slots < 1 or kv_tokens < 1:
        raise ValueError("`slots` and `kv_tokens` must be at least 1")
    if min(prefill_s_per_token, decode_s, decode_s_per_seq, start_s) < 0:
        raise ValueError("no time may be negative")
    longest = max(context_tokens, kv_tokens, 1)
    profile = EngineProfile(
        name="linear",
        batching=batching,
        slots=slots,
        kv_tokens=kv_tokens,
        context_tokens=context_tokens,
        prefill=PrefillTable(tokens=[0, longest], before=[0], seconds=[[0.0], [longest * prefill_s_per_token]]),
        decode=DecodeTable(
            sequences=[1, max(slots, 2)],
            context=[0],
            seconds=[[decode_s], [decode_s + (max(slots, 2) - 1) * decode_s_per_seq]],
        ),
        block_tokens=1,
        start_s=start_s,
    )
    return checked(profile)


def load_profile(given: EngineProfile | Mapping[str, Any] | str | Path) -> EngineProfile:
    """A profile as it is, from plain values, or from a YAML or JSON file. Raises ValueError in words."""
    if isinstance(given, EngineProfile):
        return checked(given)
    try:
        if isinstance(given, Mapping):
            return checked(msgspec.convert(dict(given), EngineProfile))
        path = Path(given).expanduser()
        text = path.read_bytes()
        # YAML needs a package that a worker may not have.
        decode = msgspec.json.decode if path.suffix == ".json" else msgspec.yaml.decode
        return checked(decode(text, type=EngineProfile))
    except (msgspec.DecodeError, ValueError, OSError) as error:
        where = "this" if isinstance(given, Mapping) else given
        raise ValueError(f"{where} is no profile of an engine: {error}") from error


def checked(profile: EngineProfile) -> EngineProfile:
    """The same profile. Raises ValueError that names what is wrong with it."""
    _check_table("prefill", "tokens", profile.prefill.tokens, "before", profile.prefill.before, profile.prefill.seconds)
    decode = profile.decode
    _check_table("decode", "sequences", decode.sequences, "context", decode.context, decode.seconds)
    if profile.batching not in ("continuous", "static"):
        raise ValueError(f"`batching` is {profile.batching!r}; valid: continuous, static")
    if min(profile.slots, profile.kv_tokens, profile.context_tokens, profile.block_tokens) < 1:
        raise ValueError("`slots`, `kv_tokens`, `context_tokens` and `block_tokens` must be at least 1")
    if profile.kv_tokens < profile.block_tokens:
        raise ValueError(f"`kv_tokens` ({profile.kv_tokens}) must hold a block of {profile.block_tokens}")
    if profile.max_batched_tokens is not None and profile.max_batched_tokens < 1:
        raise ValueError("`max_batched_tokens` must be at least 1, or null")
    times = (profile.mixing, profile.change_s, profile.start_s, profile.overhead_s)
    if not all(0.0 <= each < float("inf") for each in times):
        raise ValueError("`mixing`, `change_s`, `start_s` and `overhead_s` must be 0 or more")
    return profile


def _check_table(name: str, rows: str, xs: list[int], columns: str, ys: list[int], seconds: list[list[float]]) -> None:
    for axis, at in ((rows, xs), (columns, ys)):
        if not at or at[0] < 0 or any(right <= left for left, right in pairwise(at)):
            raise ValueError(f"`{name}.{axis}` must rise from 0 or more: {at}")
    if len(seconds) != len(xs) or any(len(row) != len(ys) for row in seconds):
        raise ValueError(f"`{name}.seconds` must have {len(xs)} rows of {len(ys)}: one for each of `{name}.{rows}`")
    if not all(0.0 <= each < float("inf") for row in seconds for each in row):
        raise ValueError(f"`{name}.seconds` must not be negative")
