"""What is known of vLLM's load; vLLM itself is not needed."""

from __future__ import annotations

from types import SimpleNamespace

from foreserve.engines.vllm_stats import Statistics


def stats(running, waiting, kv, hits, skipped=0):
    cache = SimpleNamespace(hits=hits)
    return SimpleNamespace(
        num_running_reqs=running, num_waiting_reqs=waiting, num_skipped_waiting_reqs=skipped, kv_cache_usage=kv,
        prefix_cache_stats=cache,
    )  # fmt: skip


async def test_statistics_know_nothing_until_they_are_told():
    statistics = Statistics()
    assert (statistics.waiting, statistics.kv_fraction, statistics.cached_tokens) == (None, None, None)
    statistics.record(None, None)
    statistics.record(SimpleNamespace(), None)  # a version that has renamed all of them
    assert (statistics.waiting, statistics.kv_fraction, statistics.cached_tokens) == (None, None, None)


async def test_statistics_add_up_over_processes_and_steps():
    statistics = Statistics()
    statistics.record(stats(2, 1, 0.25, 64), None, None, 0)
    assert statistics.last_step_s is None
    statistics.record(stats(1, 3, 0.5, 32, skipped=1), None, engine_idx=1)
    statistics.record(stats(2, 0, 0.125, 0), None, engine_idx=0)
    assert (statistics.waiting, statistics.kv_fraction, statistics.cached_tokens) == (4, 0.5, 96)
    assert statistics.last_step_s > 0


async def test_a_pause_is_no_step():
    statistics = Statistics()
    statistics.record(stats(0, 0, 0.0, 0), None)
    statistics.record(stats(1, 0, 0.0, 0), None)
    assert statistics.last_step_s is None
