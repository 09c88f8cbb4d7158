"""What waits for a service, summed up for scaling."""

from __future__ import annotations

from collections.abc import Iterable

from foreserve.core import Work
from foreserve.dispatch.admission import predicted_wait
from foreserve.ports import QueueView
from foreserve.scaling import Waiting


def summed(works: Iterable[Work], count: int, oldest_s: float, view: QueueView) -> Waiting:
    """`works` are those that have a price; `count` and `oldest_s` are of all that wait."""
    seconds, amounts = 0.0, dict[str, float]()
    for work in works:
        seconds += 0.0 if work.forecast is None else work.forecast.seconds
        for name, amount in work.cost.items():
            if work.ramp is None or name != work.ramp.resource:
                amounts[name] = amounts.get(name, 0.0) + amount
        if work.ramp is not None:
            height = min(work.ramp.base + work.ramp.steps, work.ramp.most)
            amounts[work.ramp.resource] = amounts.get(work.ramp.resource, 0.0) + height
    known = view.seconds_per_request is not None
    return Waiting(
        count=count,
        oldest_s=oldest_s,
        seconds=seconds,
        amounts=amounts,
        predicted_wait_s=view.cold_s + predicted_wait(view) if known else None,
    )
