"""How the order of a continuous queue scales: what one pick costs, and what it does for 64 replicas.

Cost: a queue of a fixed length, from which one request is picked for each that is added; real lengths, no I/O.
Fleet: the real dispatcher with 64 simulated replicas on the virtual clock, arrivals of a trace, at 0.95 and 1.3 of
saturation, with the same admission on both sides and with the default on the side of first come. `shortest` knows true
lengths, which no live policy can: it is there as a bound.
"""

from __future__ import annotations

import gc
import heapq
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks import pace
from benchmarks.common import Report, arguments, console, median, picture
from benchmarks.simulated_fleet import (
    TENANTS,
    Ended,
    Row,
    arrivals,
    rows,
    saturation,
    simulate,
)
from foreserve.core import Forecast, Outcome, OutcomeKind, Work
from foreserve.dispatch.admission import Bounded, Foreseen, Patient
from foreserve.dispatch.batching import FirstCome
from foreserve.dispatch.ordering import ResponseRatio
from foreserve.ports import Admission, BatchPolicy, Pick, Room, Wait

LENGTHS = (1_000, 3_000, 10_000, 30_000, 100_000)
REPLICAS = 64
LOADS = (0.95, 1.3)
GAP_S = 0.001
"""Between two arrivals of the cost measurement."""


class Shortest:
    """Shortest true length first: perfect knowledge, for comparison alone."""

    def __init__(self) -> None:
        self._waiting: dict[str, Work] = {}
        self._heap: list[tuple[int, float, str]] = []

    def add(self, work: Work, now: float) -> None:
        self._waiting[work.id] = work
        heapq.heappush(self._heap, (work.payload.max_tokens, work.arrival, work.id))

    def remove(self, request_id: str) -> None:
        self._waiting.pop(request_id, None)

    def pick(self, rooms: Sequence[Room], now: float) -> Pick | Wait | None:
        while self._heap and self._heap[0][2] not in self._waiting:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        head = self._waiting[self._heap[0][2]]
        if not any(room.takes([head]) for room in rooms):
            return None
        del self._waiting[head.id]
        return Pick(ids=(head.id,), why="shortest")

    def settled(self, outcome: Outcome) -> None:
        """Nothing is to be learned."""


POLICIES: Mapping[str, Callable[[], BatchPolicy]] = {"fcfs": FirstCome, "hrrn": ResponseRatio, "shortest": Shortest}
SIDES: Mapping[str, tuple[str, Callable[[int, float], Admission], str]] = {
    "fcfs, bounded": ("fcfs", Bounded, ""),
    "hrrn, foreseen": ("hrrn", Foreseen, "fcfs, bounded"),
    "fcfs, patient": ("fcfs", Patient, ""),
    "hrrn, patient": ("hrrn", Patient, "fcfs, patient"),
    "shortest, patient": ("shortest", Patient, "fcfs, patient"),
}
"""Policy, admission, and the side that it is compared with: of the same admission, or what is there by default."""


def work(number: int, row: Row) -> Work:
    """As the service would hand it to the policy; every second one has a deadline, which it can meet."""
    arrival = number * GAP_S
    seconds = row.prompt * pace.PREFILL_S + row.predicted.mean * pace.TPOT_S
    least = row.prompt * pace.PREFILL_S + row.least * pace.DECODE_S
    return Work(
        id=f"q{number}",
        payload=None,
        cost={"slots": 1.0, "kv_tokens": row.prompt + row.predicted.p80},
        arrival=arrival,
        deadline=arrival + 3600.0 if number % 2 else None,
        tenant=f"t{number % TENANTS}",
        forecast=Forecast(
            input_tokens=row.prompt, output=row.predicted, most_tokens=1024, seconds=seconds, least_seconds=least
        ),
    )


def pick_us(policy: BatchPolicy, queue: int, served: Sequence[Row], picks: int, repeat: int) -> list[float]:
    """Microseconds to add one, pick one and hear of one's end, with `queue` waiting; `repeat` means of `picks`."""
    free = {"slots": 4.0, "kv_tokens": 1e5}
    rooms = [Room(replica=f"r{n}", free=free, capacity=free, running=12) for n in range(REPLICAS)]
    works = [work(number, served[number % len(served)]) for number in range(queue + picks * repeat)]
    by_id = {one.id: one for one in works}
    for one in works[:queue]:
        policy.add(one, one.arrival)
    usage = {"prompt_tokens": 60.0, "output_tokens": 40.0}
    means = []
    for turn in range(repeat):
        some = works[queue + turn * picks : queue + (turn + 1) * picks]
        spent = 0.0
        gc.collect()
        for one in some:
            now = one.arrival
            began = time.perf_counter()
            policy.add(one, now)
            pick = policy.pick(rooms, now)
            spent += time.perf_counter() - began
            assert isinstance(pick, Pick)
            gone = by_id[pick.ids[0]]
            end = Outcome(
                id=gone.id,
                service="s",
                kind=OutcomeKind.DONE,
                arrival=gone.arrival,
                started=now,
                ended=now + 1.0,
                tenant=gone.tenant,
                usage=usage,
            )
            began = time.perf_counter()
            policy.settled(end)
            spent += time.perf_counter() - began
        means.append(spent / picks * 1e6)
    return means


def cost(report: Report, served: Sequence[Row], quick: bool) -> dict[str, list[float]]:
    """Medians by policy, for each of `LENGTHS`."""
    picks, repeat = (500, 3) if quick else (2000, 7)
    curves: dict[str, list[float]] = {}
    for name in ("fcfs", "hrrn"):
        for queue in LENGTHS:
            means = pick_us(POLICIES[name](), queue, served, picks, repeat)
            curves.setdefault(name, []).append(median(means))
            if name == "hrrn" and queue in (LENGTHS[0], LENGTHS[-1]):
                report.add(f"pick_us_at_{queue}", means, "tens of microseconds, flat")
            elif queue in (LENGTHS[0], LENGTHS[-1]):
                report.add(f"fcfs_pick_us_at_{queue}", means)
    return curves


def fleet(report: Report, served: Sequence[Row], count: int) -> dict[str, dict[float, Ended]]:
    """What each side did at each load; ratios to the side that it is compared with go into the report."""
    found: dict[str, dict[float, Ended]] = {side: {} for side in SIDES}
    rate = saturation(served) * REPLICAS
    for load in LOADS:
        times = arrivals(count, rate * load, report)
        for side, (policy, admission, against) in SIDES.items():
            began = time.perf_counter()
            ended = simulate(POLICIES[policy](), admission(count, 600.0), served, times, REPLICAS, seed=0)
            found[side][load] = ended
            console.print(
                f"{side} at {load}: mean {ended.mean:.2f} s (all {ended.mean_all:.2f}), p50 {ended.p50:.2f}, "
                f"p99 {ended.p99:.2f}, worst tenant's p99 {ended.worst_tenant_p99:.2f}, {ended.done:.1%} done, "
                f"goodput {ended.goodput:.0f}/s, {ended.tokens_per_s:,.0f} tokens/s; "
                f"simulated in {time.perf_counter() - began:.0f} s"
            )
            if against:
                other, words = found[against][load], side.replace(", ", "_")
                key = f"{words}_{str(load).replace('.', '')}"
                report.add(f"{key}_mean", ended.mean / other.mean)
                report.add(f"{key}_p99", ended.p99 / other.p99)
                report.add(f"{key}_worst_tenant_p99", ended.worst_tenant_p99 / other.worst_tenant_p99)
                report.add(f"{key}_goodput", ended.goodput / other.goodput)
                report.add(f"{key}_tokens", ended.tokens_per_s / other.tokens_per_s)
    return found


def draw(curves: Mapping[str, Sequence[float]], found: Mapping[str, Mapping[float, Ended]]) -> None:
    """The curve of costs, and latency against goodput."""
    with picture("scheduler_scale", f"Order of the queue: cost of a pick, and {REPLICAS} replicas", columns=2) as axes:
        for name, values in curves.items():
            axes[0].plot(LENGTHS, values, marker="o", label=name)
        axes[0].set(xscale="log", xlabel="waiting requests", ylabel="microseconds to add and pick one")
        axes[0].set_ylim(bottom=0)
        axes[0].legend()
        for name, by_load in found.items():
            axes[1].plot(
                [ended.goodput for ended in by_load.values()],
                [ended.mean for ended in by_load.values()],
                marker="o",
                label=name,
            )
        axes[1].set(xlabel=f"goodput, requests/s, at {' and '.join(map(str, LOADS))}", ylabel="mean latency, s")
        axes[1].legend()


def main() -> None:
    """Measure and report."""
    args = arguments(__doc__, more=lambda parser: parser.add_argument("--requests", type=int, default=100_000))
    count = 8_000 if args.quick else args.requests
    settings = {"replicas": REPLICAS, "requests": count, "loads": LOADS, "queue_lengths": LENGTHS}
    report = Report("scheduler_scale", settings)
    served = rows(report)
    curves = cost(report, served, args.quick)
    found = fleet(report, served, count)
    report.note("deadline: twice the unloaded time and 1 s; latencies are of requests that were done")
    for side, (_, _, against) in SIDES.items():
        if against:
            report.note(f"{side} is compared with {against}")
    draw(curves, found)
    report.finish(args.json)


if __name__ == "__main__":
    main()
