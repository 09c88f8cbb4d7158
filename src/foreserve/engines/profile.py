"""What an engine takes, measured once: the tables that the simulated engine interpolates. Small and readable.

Times are in seconds, lengths in tokens, memory in bytes. `foreserve calibrate` makes one of a real engine.
"""

from __future__ import annotations

from typing import Literal

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
    longest = max(context_tokens, kv_tokens, 1)
    return EngineProfile(
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
