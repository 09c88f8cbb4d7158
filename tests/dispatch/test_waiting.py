from __future__ import annotations

import asyncio
from typing import Any

from foreserve.core import Forecast, Length, Ramp
from foreserve.scaling import Waiting
from foreserve.simulation.clock import run
from tests.dispatch.harness import House

LENGTH = Length(mean=50.0, p50=50.0, p80=60.0, p95=90.0, source="fast")


def priced(seconds: float, steps: int, most: int = 500) -> dict[str, Any]:
    return {
        "cost": {"slots": 1.0, "kv_tokens": 9999.0},
        "forecast": Forecast(input_tokens=100, output=LENGTH, most_tokens=400, seconds=seconds),
        "ramp": Ramp(resource="kv_tokens", base=100, steps=steps, most=most),
    }


def test_what_waits_is_summed_with_the_height_of_ramps():
    async def main() -> None:
        house = House()
        house.replica()
        assert house.dispatcher.load(0.0) == Waiting()
        runs = house.submit("runs", 100.0)
        await asyncio.sleep(1.0)
        house.submit("a", **priced(3.0, 50))
        await asyncio.sleep(2.0)
        house.submit("b", **priced(4.0, 900))
        house.submit("c", cost={"slots": 2.0})
        await asyncio.sleep(0)
        load = house.dispatcher.load(4.0)
        assert (load.count, load.oldest_s, load.seconds) == (3, 3.0, 7.0)
        assert load.amounts == {"slots": 4.0, "kv_tokens": 150.0 + 500.0}
        assert load.predicted_wait_s is None, "nothing has ended yet"
        await runs.settled()
        assert (house.dispatcher.load(103.0).predicted_wait_s or 0.0) > 1.0

    run(main())
