"""How much memory workers take that share what they only read, beside workers that each have their own.

Every worker has answered calls before it is measured. Memory is Pss, summed over the workers, the process that they are
forked out of, and the memory owner: what the machine would get back if all of them ended. `private` workers are
interpreters of their own that load as one writes it without Foreserve.

How many fit in 8 GiB follows from what the first worker takes and what each more adds. `replica_ready_s` is from the
decision to have one more until it takes work.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from rich.progress import Progress

from benchmarks.cold_app import House, Model, house, models
from benchmarks.cold_start import PATIENT
from benchmarks.common import Report, arguments, console, median, picture
from foreserve.runtime.footprint import footprint

WORKERS: Final = (1, 2, 4, 8, 16)
MOST_PRIVATE_BYTES: Final = 12 << 30
"""Private copies that would take more are not started."""

GIB: Final = 1 << 30
MIB: Final = 1 << 20
ROOM: Final = 8 * GIB


class Grown(msgspec.Struct, frozen=True):
    """Bytes by number of workers, with the pool and the owner (`all`), and seconds until one more was ready.

    `mapped`: of the file with the weights, mapped by them, which workers of one function share and others do not.
    """

    all: dict[int, int]
    ready_s: list[float]
    mapped: int = 0

    @property
    def more(self) -> float:
        """What each more worker adds."""
        first, last = min(self.all), max(self.all)
        return (self.all[last] - self.all[first]) / (last - first)

    def fit(self, room: float) -> int:
        """How many workers `room` bytes hold."""
        first = min(self.all)
        return max(0, first + int((room - self.all[first]) // self.more))

    def different(self, room: float, weights: int) -> float:
        """How many functions `room` bytes hold that have so many bytes of weights each, and the same imports."""
        return max(0.0, 1.0 + (room - self.all[min(self.all)]) / (self.more + weights))


async def _bytes(place: House, pids: list[int]) -> int:
    """Of all processes that serve the function."""
    stats = await place.running.memory.stats()
    contexts = () if place.running.contexts is None else await place.running.contexts.stats()
    others = [context.pid for context in contexts] + ([stats.pid] if stats is not None else [])
    found = [footprint(pid) for pid in (*pids, *others)]
    return sum(one.pss for one in found if one is not None)


def mapped(pids: list[int], file: Path) -> int:
    """Bytes of `file` that these processes map, their fair shares summed."""
    total = 0
    for pid in pids:
        of_it = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, _, rest = line.partition(":")
            if "-" in name and " " in name:  # a mapping's first line: addresses, rights, and what is mapped
                of_it = line.endswith(str(file))
            elif of_it and name == "Pss":
                total += int(rest.split()[0]) * 1024
    return total


async def grow(place: House, counts: list[int], file: Path, turn: Callable[[], None]) -> Grown:
    """More and more workers, each of which has answered."""
    found: dict[int, int] = {}
    of_file = 0
    for count in counts:
        pids = await place.scale(count)
        for _ in range(2):
            await place.calls(count)
        found[count] = await _bytes(place, pids)
        of_file = mapped(pids, file)
        turn()
    ready = []
    for _ in range(5):
        await place.scale(0)
        began = time.perf_counter()
        await place.scale(1)
        ready.append(time.perf_counter() - began)
    return Grown(found, ready, of_file)


async def measure(model: Model, most: int, turn: Callable[[], None]) -> tuple[Grown, Grown]:
    """Shared and private."""
    words: dict[str, Any] = {**PATIENT, "max_running": 1, "replicas": most}
    counts = [count for count in WORKERS if count <= most]
    file = (model.folder / "model.safetensors").resolve()
    weights = file.stat().st_size
    async with house(model.kind(**words)) as place:
        await place.call()  # so that the process that forks has learned what a worker imports
        await place.learned()
        await place.scale(0)
        shared = await grow(place, counts, file, turn)
    few = [count for count in counts if count * (weights + 300 * MIB) <= MOST_PRIVATE_BYTES]
    async with house(model.kind("private", **words), fork=False) as place:
        private = await grow(place, few, file, turn)
    return shared, private


def told(report: Report, found: dict[str, tuple[Grown, Grown, int]]) -> None:
    """By model, and without its name of the one that gains least."""
    savings, functions, several = [], [], []
    for name, (shared, private, weights) in found.items():
        for count in shared.all:
            report.add(f"{name}_shared_{count}_mib", shared.all[count] / MIB)
            if count in private.all:
                report.add(f"{name}_private_{count}_mib", private.all[count] / MIB)
        report.add(f"{name}_one_more_shared_mib", shared.more / MIB)
        report.add(f"{name}_one_more_private_mib", private.more / MIB)
        at = max(set(shared.all) & set(private.all) & {1, 2, 4, 8})
        savings.append(private.all[at] / shared.all[at])
        report.add(f"{name}_pss_saving_{at}", savings[-1])
        functions.append(shared.fit(ROOM) / max(1, private.fit(ROOM)))
        report.add(f"{name}_in_8gb", float(shared.fit(ROOM)))
        report.add(f"{name}_in_8gb_vs_private", functions[-1])
        # Each has weights of its own; private workers of one function share theirs where the library maps the file.
        several.append(shared.different(ROOM, weights) / max(1.0, private.different(ROOM, private.mapped)))
        report.add(f"{name}_different_in_8gb_vs_private", several[-1])
        report.add(f"{name}_replica_ready_s", shared.ready_s)
        report.add(f"{name}_replica_ready_s_before", private.ready_s)
    report.add("pss_saving_8", min(savings), "above 1")
    report.add("functions_in_8gb_vs_private", min(functions), "above 1.22")
    report.add("different_functions_in_8gb_vs_private", min(several), "above 1")
    slowest = max(found, key=lambda name: median(found[name][0].ready_s))
    report.add("replica_ready_s", found[slowest][0].ready_s)
    report.add("replica_ready_s_before", found[slowest][1].ready_s)


async def run(every: list[Model], most: int) -> dict[str, tuple[Grown, Grown, int]]:
    """All models."""
    found = {}
    counts = [count for count in WORKERS if count <= most]
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("growing", total=2 * len(counts) * len(every))
        for model in every:
            size = (model.folder / "model.safetensors").stat().st_size
            found[model.name] = (*await measure(model, most, lambda: bar.advance(task)), size)
    return found


def main() -> None:
    """Measure and report."""
    args = arguments(__doc__)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    names, matrices, most = (["minilm"], 1, 4) if args.quick else (["minilm", "smollm2", "made"], 16, 16)
    report = Report("density", {"models": names, "most": most, "room_gib": ROOM / GIB})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(models(names, matrices), most))
    told(report, found)
    report.note("keys without a model: of the model that gains least, `replica_ready_s` of the slowest to start")
    with picture("density", "Memory of so many workers", columns=len(found)) as axes:
        for axis, (name, (shared, private, _)) in zip(axes, found.items(), strict=True):
            for label, grown in (("private copies", private), ("shared", shared)):
                axis.plot(list(grown.all), [each / GIB for each in grown.all.values()], marker="o", label=label)
            axis.set(title=name, xlabel="workers", ylabel="GiB")
            axis.set_ylim(bottom=0)
            axis.legend()
    report.finish(args.json)


if __name__ == "__main__":
    main()
