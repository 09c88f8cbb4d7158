"""Ray Serve's choice among replicas and ours, on a virtual clock: the load of the live runs, in seconds and longer.

`power_of_two` is what Serve's default router does with a queue-length cache that is exact, as that of a single handle
is: of two replicas that are drawn, the one with fewer requests. Ours are the bookings that the live router keeps.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.cluster_serve_engine import MOST_TOKENS, READS, STEP_S, Ask, Engine
from benchmarks.common import Report, arguments, console
from benchmarks.routing_load import KV_TOKENS, SLOTS
from foreserve.chosen import make_placement
from foreserve.integrations.ray_serve_bookings import Bookings
from foreserve.simulation.clock import run

SETTINGS = {"kv_tokens": KV_TOKENS, "token_s": 1 / READS, "step_s": STEP_S, "most": MOST_TOKENS}
SIDES = ("power_of_two", "least_tokens", "anticipated", "anticipated_even", "anticipated_even, no figures")
SECONDS = 120.0
BEGINS = (0, 3000, 6000)
"""Rows of the trace at which runs begin."""


class PowerOfTwo:
    """Serve's default."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._held: Counter[str] = Counter()

    def choose(self, request_id: str, ask: Ask, names: Sequence[str], now: float) -> str:
        """Where this goes; counted there."""
        name = min(self._random.sample(list(names), min(2, len(names))), key=lambda one: self._held[one])
        self._held[name] += 1
        return name

    def ended(self, request_id: str, name: str, now: float) -> None:
        """No longer counted."""
        self._held[name] -= 1


class Booked:
    """Ours."""

    def __init__(self, placement: str, **settings: float) -> None:
        self._bookings = Bookings(make_placement("twin", placement), **settings)  # type: ignore[arg-type]

    def choose(self, request_id: str, ask: Ask, names: Sequence[str], now: float) -> str:
        """Where this goes; booked there."""
        work = self._bookings.priced(request_id, [ask.payload(int(request_id))], {}, now)
        name = self._bookings.order(work, dict.fromkeys(names, SLOTS), now)[0]
        self._bookings.routed(request_id, name, now)
        return name

    def ended(self, request_id: str, name: str, now: float) -> None:
        """Struck off."""
        self._bookings.completed(request_id, now)


def side(name: str, seed: int) -> PowerOfTwo | Booked:
    """A router by its name in `SIDES`."""
    if name == "power_of_two":
        return PowerOfTwo(seed)
    placement, _, bare = name.partition(", ")
    return Booked(placement, **({} if bare else SETTINGS))


async def _play(router: PowerOfTwo | Booked, asks: Sequence[Ask], replicas: int) -> tuple[list[float], list[float]]:
    loop = asyncio.get_running_loop()
    engines = {f"r{number}": Engine() for number in range(replicas)}
    start = loop.time()
    first: list[float] = []
    whole: list[float] = []

    async def one(number: int, ask: Ask) -> None:
        await asyncio.sleep(max(0.0, start + ask.at - loop.time()))
        sent = loop.time()
        name = router.choose(str(number), ask, [*engines], sent)
        tokens, began = 0, None
        async for part in engines[name](ask.payload(number)):
            tokens += part
            began = loop.time() if began is None else began
        assert tokens == ask.output
        assert began is not None
        router.ended(str(number), name, loop.time())
        first.append(began - sent)
        whole.append(loop.time() - sent)

    await asyncio.gather(*(one(number, ask) for number, ask in enumerate(asks)))
    return first, whole


def simulate(name: str, asks: Sequence[Ask], replicas: int, seed: int = 0) -> tuple[float, float]:
    """The 99th percentile of the seconds to a first token, and of those of a whole answer."""
    first, whole = run(_play(side(name, seed), asks, replicas))
    return float(np.percentile(first, 99)), float(np.percentile(whole, 99))


def main() -> None:
    """Run it."""
    args = arguments(__doc__)
    report = Report("cluster_serve_twin", {"quick": args.quick})
    rates = (1.6,) if args.quick else (1.4, 1.5, 1.6, 1.7, 1.8)
    for replicas in (4,) if args.quick else (3, 4, 8):
        for rate in rates:
            found = {}
            for name in SIDES:
                runs = [
                    simulate(name, load_quietly(rate * replicas, begin), replicas, seed)
                    for seed, begin in enumerate(BEGINS)
                ]
                found[name] = [float(value) for value in np.median(np.array(runs), axis=0)]
                report.add(f"p99_ttft_s {replicas} x {rate:g} {name}", [run[0] for run in runs])
            console.print(f"{replicas} x {rate:g}", {name: [round(v, 2) for v in both] for name, both in found.items()})
    report.finish(args.json)


def load_quietly(rate: float, begin: int) -> list[Ask]:
    """As `load`, without notes."""
    from benchmarks.cluster_serve_engine import load

    return load(Report("cluster_serve_twin", {}), rate, SECONDS, begin)


if __name__ == "__main__":
    main()
