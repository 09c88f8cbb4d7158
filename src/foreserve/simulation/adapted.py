"""A profile for an engine whose settings are other than those it was measured with, as far as that can be told."""

from __future__ import annotations

import msgspec

from foreserve.engines.profile import EngineProfile
from foreserve.settings import LLMSettings, ServiceSettings, UpstreamSettings
from foreserve.simulation.verdict import WARNING

MEASURED = ("model", "engine", "weights", "exact", "threads", "engine_options", "urls")
"""Settings of which only another measurement tells what they bring."""


def adapted(
    name: str, profile: EngineProfile, measured: ServiceSettings, asked: ServiceSettings
) -> tuple[EngineProfile, list[str]]:
    """`profile`, measured under one set of settings, for another; and notes on what that leaves open.

    Slots, KV cache, context, tokens in a step and prefix caching of a local engine are carried over where they differ;
    beyond what was measured its tables go on as straight lines. A server keeps its own, however much it is sent.
    """
    notes = [
        f"{WARNING}{name}: {key} is changed, but the profile stays that of the engine that was measured "
        f"({_what(getattr(measured, key, None))}): its times say nothing of {_what(getattr(asked, key, None))}"
        for key in MEASURED
        if getattr(measured, key, None) != getattr(asked, key, None)
    ]
    if not isinstance(asked, (LLMSettings, UpstreamSettings)) or not isinstance(measured, type(asked)):
        return profile, notes
    words: dict[str, object] = {}
    if isinstance(asked, LLMSettings) and asked.max_running != measured.max_running:
        words["slots"] = asked.max_running
        if asked.max_running > profile.decode.sequences[-1]:
            most = profile.decode.sequences[-1]
            notes.append(
                f"{WARNING}{name}: {asked.max_running} requests at once were not measured (at most {most} were): how "
                "long a step takes beyond that is a straight line on, which no engine keeps to for long"
            )
    if isinstance(asked, LLMSettings) and isinstance(measured, LLMSettings):
        if asked.kv_cache_gb != measured.kv_cache_gb:
            words["kv_tokens"] = max(1, round(profile.kv_tokens * asked.kv_cache_gb / measured.kv_cache_gb))
        if asked.context_tokens not in (measured.context_tokens, None):
            words["context_tokens"] = asked.context_tokens
        if asked.max_batched_tokens != measured.max_batched_tokens and profile.max_batched_tokens is not None:
            words["max_batched_tokens"] = asked.max_batched_tokens
        if asked.prefix_caching != measured.prefix_caching:
            words["prefix_caching"] = asked.prefix_caching
    return msgspec.structs.replace(profile, **words), notes


def _what(value: object) -> str:
    return "none" if value is None else str(value)
