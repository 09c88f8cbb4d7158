"""What vLLM's engine process tells of itself after each step, as far as an `EngineLoad` has room for it."""

from __future__ import annotations

from typing import Any

from foreserve import clock


class Statistics:
    """The last that each engine process has told, summed up. Counts are `None` until one has told.

    Its fields are vLLM's `SchedulerStats`, which vLLM does not call stable: a field that is gone is not known.
    """

    def __init__(self) -> None:
        self._told: dict[int, Any] = {}
        self._at: dict[int, float] = {}
        self._hits: int | None = None
        self.last_step_s: float | None = None

    @property
    def waiting(self) -> int | None:
        """Requests that have not begun, or were preempted."""
        counts = [_sum(told, "num_waiting_reqs", "num_skipped_waiting_reqs") for told in self._told.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    @property
    def kv_fraction(self) -> float | None:
        """Of the fullest process."""
        known = [getattr(told, "kv_cache_usage", None) for told in self._told.values()]
        return max((float(each) for each in known if each is not None), default=None)

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that were found in the prefix cache, so far."""
        return self._hits

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """See vLLM's `StatLoggerBase`. A step's length is the time since the last one, where that left work to do."""
        if scheduler_stats is None:
            return
        now = clock.precise()
        if _sum(self._told.get(engine_idx), "num_running_reqs"):
            self.last_step_s = now - self._at[engine_idx]
        self._at[engine_idx], self._told[engine_idx] = now, scheduler_stats
        hits = getattr(getattr(scheduler_stats, "prefix_cache_stats", None), "hits", None)
        if hits is not None:
            self._hits = (self._hits or 0) + int(hits)

    def logger(self, base: type) -> Any:
        """What vLLM takes for its `stat_loggers`: `base` is its `StatLoggerBase`."""
        statistics = self

        class Logger(base):  # type: ignore[misc]
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                pass

            def record(self, *args: Any, **words: Any) -> None:
                statistics.record(*args, **words)

            def log_engine_initialized(self) -> None:
                pass

        return Logger


def _sum(told: Any, *names: str) -> int | None:
    known = [getattr(told, name, None) for name in names]
    found = [int(each) for each in known if each is not None]
    return sum(found) if found else None
