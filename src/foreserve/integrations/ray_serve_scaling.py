"""An autoscaling policy of Ray Serve that scales ahead on a forecast, set by configuration alone; see docs/cluster.md.

```python
AutoscalingConfig(
    min_replicas=1, max_replicas=8, upscale_delay_s=0,
    policy={"policy_function": "foreserve.integrations.ray_serve_scaling:ForecastPolicy",
            "policy_kwargs": {"horizon_s": 30}},
)
```

It runs in Serve's controller, which it must neither stop nor keep waiting: whatever goes wrong keeps the target, and
what takes time is done in a thread. Ray is not needed to import this.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from typing import Any, Final

import numpy as np

from foreserve.foresight.workload import DAY_S, Forecaster, Series, make
from foreserve.integrations.faults import Faults

log = logging.getLogger(__name__)

FIT_EVERY: Final = 60
"""Windows between two trainings of a forecaster that learns."""

LEAST_FIT: Final = 30
"""Windows that it is trained on at the least."""


class ForecastPolicy:
    """As many replicas as the load needs now, or, where that is more, as it is foreseen to need in `horizon_s`.

    The load is the number of requests that run or wait, its mean over windows of `window_s`; `forecaster` foresees it,
    by name. A replica is taken to bear `target_ongoing_requests` (`None`: as the deployment's own configuration says),
    and `headroom` times what is needed is asked for. Up to `keep` windows are remembered; a day has `day_s`.

    `horizon_s` should be what a replica takes to start. Set `upscale_delay_s=0`: Serve's delays hold for this policy
    too. Wrong settings are logged, and the target is kept.
    """

    def __init__(
        self,
        forecaster: str = "smoothing",
        horizon_s: float = 30.0,
        window_s: float = 5.0,
        target_ongoing_requests: float | None = None,
        headroom: float = 1.0,
        keep: int = 20_000,
        day_s: float = DAY_S,
    ) -> None:
        self.faults = Faults(log, "the forecast of the load")
        self._forecaster: Forecaster | None = None
        self._fitting: threading.Thread | None = None
        self._window_s = window_s
        self._day_s = day_s
        self._target = target_ongoing_requests
        self._headroom = headroom
        self._values: deque[float] = deque(maxlen=keep)
        self._last: int | None = None
        """The window that is being filled: its number since the epoch."""
        self._sum, self._count = 0.0, 0
        self._since_fit = 0
        self.foreseen: float | None = None
        """Requests at once, `horizon_s` from the last window's end."""
        with self.faults:
            for name, value in {"horizon_s": horizon_s, "window_s": window_s, "headroom": headroom}.items():
                if not value > 0:
                    raise ValueError(f"policy_kwargs: `{name}` is {value}; it must be above 0")
            self._steps = max(1, math.ceil(horizon_s / window_s))
            self._forecaster = make(forecaster, "policy_kwargs: forecaster")

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Serve's context to a number of replicas and an empty state. Raises nothing."""
        if self._forecaster is not None:
            with self.faults:
                return self._decided(ctx), {}
        return ctx.target_num_replicas, {}

    def _decided(self, ctx: Any) -> int:
        load = float(ctx.total_num_requests)
        if not math.isfinite(load) or ctx.current_time is None:
            raise ValueError(f"the load is {load} at {ctx.current_time}")
        self._take(load, float(ctx.current_time))
        target = self._target or float(ctx.config.get_target_ongoing_requests())
        need = max(load, self.foreseen or 0.0) * self._headroom
        wanted = math.ceil(need / target - 1e-9)
        return max(int(ctx.capacity_adjusted_min_replicas), min(wanted, int(ctx.capacity_adjusted_max_replicas)))

    def _take(self, load: float, now: float) -> None:
        """Count it to its window; where one has ended, look ahead anew."""
        window = int(now // self._window_s)
        if self._last is None or window < self._last:  # the first, or a clock that was set back
            self._values.clear()
            self._last, self._sum, self._count = window, 0.0, 0
        if window > self._last:
            self._values.append(self._sum / self._count if self._count else math.nan)
            for _ in range(min(window - self._last - 1, self._values.maxlen or 0)):
                self._values.append(math.nan)
            self._last, self._sum, self._count = window, 0.0, 0
            self._look_ahead()
        self._sum += load
        self._count += 1

    def _look_ahead(self) -> None:
        assert self._last is not None
        assert self._forecaster is not None
        values = np.array(self._values)
        series = Series(self._last - len(values), self._window_s, values, self._day_s)
        self.foreseen = None  # should this raise
        foreseen = float(self._forecaster.forecast(series, np.array([len(values) - 1]), self._steps)[0])
        self.foreseen = foreseen if math.isfinite(foreseen) else None
        self._since_fit += 1
        if self._forecaster.learns and len(values) >= LEAST_FIT and self._since_fit >= FIT_EVERY:
            self._fit(self._forecaster, series)

    def _fit(self, forecaster: Forecaster, series: Series) -> None:
        """Beside the control loop; the trained one takes over when it is done."""
        if self._fitting is not None and self._fitting.is_alive():
            return
        self._since_fit = 0

        def fit() -> None:
            with self.faults:
                self._forecaster = forecaster.fit(series, self._steps)

        self._fitting = threading.Thread(target=fit, name="foreserve-fit", daemon=True)
        self._fitting.start()
