"""How long a call takes that finds no worker, beside other ways to start: after SAGE's comparison, on a CPU.

A call's duration is from its arrival to its answer, the mean over 1, 4 and 8 calls that come at once. The sides:

- `fresh`: a process for each call: interpreter, imports, a private copy of the weights, the answer;
- `serial`: one new worker for all, which starts its interpreter, imports, and then loads a private copy;
- `ours`: one worker out of a process that has the imports (those too that the first worker was seen to make when it
  made its model), bound to weights that the memory owner reads meanwhile; it has none of them when the calls come,
  unless the figure says `held`;
- `warm`: workers that are there, each with a private copy: what no start can be faster than.

Files are in the page cache for all sides. The floor of ours is the larger of context and load, then the answer.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop
from rich.progress import Progress

from benchmarks.cold_app import FILE, TEXT, House, Model, house, models
from benchmarks.common import Report, arguments, bars, console, picture, ratios

CALLS: Final = (1, 4, 8)
PATIENT: Final[dict[str, Any]] = {"start_limit_s": 300.0, "liveness_s": 120.0, "queue": {"max_wait_s": 300.0}}


async def fresh(model: Model, number: int) -> list[float]:
    """Seconds of each of so many calls at once, a new interpreter for each."""

    async def one() -> float:
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(FILE), model.name, str(model.folder), TEXT,
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        out, _ = await process.communicate()
        if process.returncode or not out:
            raise RuntimeError(f"the fresh process ended with {process.returncode}")
        return time.perf_counter() - began

    return list(await asyncio.gather(*(one() for _ in range(number))))


async def cold(place: House, number: int) -> list[float]:
    """The same of a house whose worker has left."""
    await place.scale(0)
    await asyncio.sleep(0.1)  # so that the owner has heard of it, and lets go of what it may
    return await place.calls(number)


async def measure(model: Model, report: Report, repeats: int, turn: Callable[[], None]) -> dict[str, list[float]]:
    """All sides in turn, so that drift of the machine falls out; the mean duration of each repetition by side."""
    found: dict[str, list[float]] = {}

    async def side(name: str, calls: Awaitable[list[float]]) -> None:
        took = await calls
        found.setdefault(name, []).append(sum(took) / len(took))
        turn()

    async with (
        house(model.kind(**PATIENT), host_s=0.0) as ours,
        house(model.kind(**PATIENT)) as held,
        house(model.kind("private", **PATIENT), fork=False) as serial,
        house(model.kind("private", **PATIENT), fork=False) as warm,
    ):
        answers = [(await place.call())[1] for place in (ours, held, serial, warm)]
        if any(answer != answers[0] for answer in answers):
            raise RuntimeError(f"{model.name}: the sides answer differently: {answers}")
        for place in (ours, held):
            await place.learned()
        for _ in range(repeats):
            for number in CALLS:
                await side(f"fresh_{number}", fresh(model, number))
                await side(f"serial_{number}", cold(serial, number))
                await side(f"ours_{number}", cold(ours, number))
                await side(f"held_{number}", cold(held, number))
                await side(f"warm_{number}", warm.calls(number))
    return found


async def reads_for_eight(model: Model) -> tuple[float, float]:
    """Eight calls and eight workers at once, none there before: how often the file was read, and the worst duration."""
    size = (model.folder / "model.safetensors").stat().st_size
    async with house(model.kind(replicas=8, max_running=1, **PATIENT)) as place:
        calls = asyncio.create_task(place.calls(8))
        await asyncio.sleep(0)
        await place.scale(8)
        took = await calls
        stats = await place.running.memory.stats()
        if stats is None:
            raise RuntimeError("there is no memory owner")
        return stats.bytes_read / size, max(took)


async def run(every: list[Model], report: Report, repeats: int) -> dict[str, dict[str, list[float]]]:
    """All models."""
    found: dict[str, dict[str, list[float]]] = {}
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("starting", total=len(every) * repeats * len(CALLS) * 5)
        for model in every:
            found[model.name] = await measure(model, report, repeats, lambda: bar.advance(task))
    reads, worst = await reads_for_eight(every[-1])
    report.add("weights_reads_for_8", reads, "1")
    report.add("worst_of_8_workers_s", worst)
    return found


def told(report: Report, found: dict[str, dict[str, list[float]]]) -> None:
    """Ratios, run by run; without a model's name they are its who gains least."""
    headline: dict[str, list[tuple[float, list[float]]]] = {}
    for name, sides in found.items():
        for number in CALLS:
            ours = sides[f"ours_{number}"]
            for side in ("fresh", "serial", "held", "warm"):
                report.add(f"{name}_{side}_{number}_s", sides[f"{side}_{number}"])
            report.add(f"{name}_ours_{number}_s", ours)
            ratio = ratios(sides[f"fresh_{number}"], ours)
            report.add(f"{name}_vs_fresh_process_{number}", ratio, "at least 12")
            key = f"duration_vs_fresh_process_{number}"
            headline.setdefault(key, []).append((sorted(ratio)[len(ratio) // 2], ratio))
        serial = ratios(sides["serial_1"], sides["ours_1"])
        report.add(f"{name}_vs_serial_setup", serial)
        headline.setdefault("duration_vs_serial_setup", []).append((sorted(serial)[len(serial) // 2], serial))
    for key, several in headline.items():
        report.add(key, min(several)[1], "at least 12" if "fresh" in key else "above 1")


def main() -> None:
    """Measure and report."""
    args = arguments(__doc__)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    names, matrices, repeats = (["minilm"], 1, 1) if args.quick else (["minilm", "smollm2", "made"], 16, 3)
    every = models(names, matrices)
    settings: dict[str, Any] = {"models": names, "repeats": repeats, "calls": CALLS, "threads": 1}
    report = Report("cold_start", settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(every, report, repeats))
    told(report, found)
    report.note("keys without a model: of the model that gains least; `held`: the memory owner still has the weights")
    with picture("cold_start", "A call that finds no worker, mean seconds", columns=len(found)) as axes:
        for axis, (name, sides) in zip(axes, found.items(), strict=True):
            bars(axis, {key.replace("_", "\n"): values for key, values in sides.items()}, "seconds")
            axis.set(title=name, yscale="log")
            axis.tick_params(labelsize=6)
    report.finish(args.json)


if __name__ == "__main__":
    main()
