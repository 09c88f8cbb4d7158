"""What the Prometheus page of a vLLM, SGLang or llama.cpp server tells: load, progress, pace, size of the KV cache."""

from __future__ import annotations

import re

import msgspec

from foreserve.core import EngineLoad

_NAMES = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"),
    "kv": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage",
           "llamacpp:kv_cache_usage_ratio"),
    "cached": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total", "sglang:cached_tokens_total",
               "llamacpp:prompt_tokens_cached_total"),
    "pace_s": ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum",
               "sglang:inter_token_latency_seconds_sum", "sglang:time_per_output_token_seconds_sum",
               "llamacpp:tokens_predicted_seconds_total"),
    "pace_n": ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count",
               "sglang:inter_token_latency_seconds_count", "sglang:time_per_output_token_seconds_count",
               "llamacpp:tokens_predicted_total"),
    "kv_tokens": ("sglang:max_total_num_tokens",),
}  # fmt: skip
"""By meaning: the first of these that a page has."""

_PROGRESS = (
    "vllm:iteration_tokens_total_count", "vllm:generation_tokens_total", "vllm:prompt_tokens_total",
    "sglang:realtime_tokens_total", "sglang:generation_tokens_total", "sglang:prompt_tokens_total",
    "llamacpp:n_decode_total", "llamacpp:tokens_predicted_total", "llamacpp:prompt_tokens_total",
)  # fmt: skip
"""Counters, some of which grow with every few steps of a server that works."""

_METRIC = re.compile(
    rb"^("
    + b"|".join(re.escape(name.encode()) for name in dict.fromkeys((*sum(_NAMES.values(), ()), *_PROGRESS)))
    + rb")(?:\{[^}\n]*\})? +([0-9.eE+-]+)",
    re.MULTILINE,
)
_CACHE = re.compile(rb"^vllm:cache_config_info\{([^}\n]*)\}", re.MULTILINE)
_LABEL = re.compile(rb'(num_gpu_blocks|block_size|kv_cache_size_tokens)="([0-9]+)"')


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What one reading tells. `progress` grows while the server works, `None` where nothing like it is counted.

    `pace` is seconds between tokens and how many such gaps there were, both since the server's start; `kv_tokens` is
    how many tokens its KV cache holds.
    """

    load: EngineLoad
    progress: float | None = None
    pace: tuple[float, float] | None = None
    kv_tokens: float | None = None


def read(page: bytes) -> Page | None:
    """`None` for a page of anything else. Counts of several engines in one server are added up."""
    found: dict[str, list[float]] = {}
    for name, amount in _METRIC.findall(page):
        try:
            found.setdefault(name.decode(), []).append(float(amount))
        except ValueError:
            continue
    told = {
        meaning: values
        for meaning, names in _NAMES.items()
        if (values := next((found[name] for name in names if name in found), None)) is not None
    }
    progress = [sum(found[name]) for name in _PROGRESS if name in found]
    kv_tokens = _vllm_tokens(page) or (sum(told["kv_tokens"]) if "kv_tokens" in told else None)
    if not told and not progress and kv_tokens is None:
        return None
    return Page(
        load=EngineLoad(
            running=int(sum(told["running"])) if "running" in told else None,
            waiting=int(sum(told["waiting"])) if "waiting" in told else None,
            kv_fraction=max(told["kv"]) if "kv" in told else None,
            cached_tokens=int(sum(told["cached"])) if "cached" in told else None,
        ),
        progress=sum(progress) if progress else None,
        pace=(sum(told["pace_s"]), sum(told["pace_n"])) if {"pace_s", "pace_n"} <= told.keys() else None,
        kv_tokens=kv_tokens,
    )


def _vllm_tokens(page: bytes) -> float | None:
    """vLLM tells its cache's size as labels, by engine."""
    tokens = 0.0
    for labels in _CACHE.findall(page):
        told = {name: float(amount) for name, amount in _LABEL.findall(labels)}
        tokens += told.get(b"kv_cache_size_tokens") or told.get(b"num_gpu_blocks", 0) * told.get(b"block_size", 0)
    return tokens or None
