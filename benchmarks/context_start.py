"""How long a replica takes to be ready as the fleet sees it, by the way in which its process comes up.

- `fresh`: a new interpreter;
- `forked`: out of a process that has the imports which are named beforehand;
- `learned`: out of one that also has what the worker before was seen to import.

The sides take turns. Memory is Pss, once the replica is idle. `first` is the first forked one, which waits for its
process's imports. `lazy` is a function that imports within its class, `torch` one that does so at the top of its file.
Where a file of weights is shared, and what calls take, is measured by `cold_start` and `density`.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from rich.progress import Progress

from benchmarks.common import Report, arguments, console, ratios
from foreserve import LLM, clock
from foreserve.core import EngineSpec
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.learned import Remembered
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import FromWorker, Ready
from foreserve.runtime.footprint import footprint
from foreserve.services.function import Function

PLAIN: Final = "def f(x: int) -> int:\n    return 2 * x\n"
LAZY: Final = """
class f:
    def __init__(self):
        import torch
        from transformers.models.bert import modeling_bert

    def __call__(self, x: int) -> int:
        return 2 * x
"""
SIDES: Final = ("fresh", "forked", "learned")
IDLE_S: Final = 0.3
MIB: Final = 1 << 20


class Start(msgspec.Struct, frozen=True):
    """Seconds from launch to `Ready`, and the idle replica's Pss in bytes."""

    ready_s: float
    pss: int


class FirstReady:
    """A listener that waits for the first `Ready`."""

    def __init__(self) -> None:
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def heard(self, message: FromWorker) -> None:
        if isinstance(message, Ready):
            self.pid.set_result(message.pid)

    def exited(self, reason: str) -> None:
        if not self.pid.done():
            self.pid.set_exception(RuntimeError(reason))


async def start(launcher: LocalLauncher, spec: EngineSpec) -> Start:
    """One replica, which is ended again."""
    listener = FirstReady()
    began = clock.precise()
    connection = await launcher.launch("replica", spec, listener)
    pid = await listener.pid
    took = clock.precise() - began
    await asyncio.sleep(IDLE_S)
    found = footprint(pid)
    await connection.stop(5.0)
    return Start(took, 0 if found is None else found.pss)


async def compare(spec: EngineSpec, repeats: int) -> tuple[dict[str, list[Start]], Start]:
    """So many starts of each side, and the first forked one."""
    contexts = {"forked": Contexts(), "learned": Contexts(remembered=Remembered())}
    launchers = {side: LocalLauncher(contexts=contexts.get(side)) for side in SIDES}
    first = await start(launchers["forked"], spec)
    await start(launchers["learned"], spec)
    for lineage in contexts["learned"].lineages:
        while lineage.learner is not None and lineage.learner.copying is not None:
            await asyncio.wait([lineage.learner.copying])
    found: dict[str, list[Start]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            found[side].append(await start(launchers[side], spec))
    for launcher in launchers.values():
        await launcher.close()
    for each in contexts.values():
        await each.close()
    return found, first


def specs(folder: Path, quick: bool) -> dict[str, EngineSpec]:
    """By name, what is compared."""
    found = {}
    for name, code in {"function": PLAIN, "torch": f"import torch\n\n{PLAIN}", "lazy": LAZY}.items():
        file = folder / f"{name}.py"
        file.write_text(code)
        found[name] = Function(f"{file}:f").engines()[0]
    if not quick:
        found["smollm2_transformers"] = LLM("smollm2", engine="transformers").engines()[0]
        found["smollm2_openvino"] = LLM("smollm2", engine="openvino", kv_cache_gb=0.25).engines()[0]
    return found


def told(report: Report, name: str, found: dict[str, list[Start]], first: Start) -> None:
    """Seconds and MiB of each side, and how many times sooner forks are ready."""
    for side in SIDES:
        report.add(f"{name}_{side}_s", [each.ready_s for each in found[side]])
        report.add(f"{name}_{side}_mib", [each.pss / MIB for each in found[side]])
    report.add(f"{name}_first_s", first.ready_s)
    fresh = [each.ready_s for each in found["fresh"]]
    for side in SIDES[1:]:
        report.add(f"{name}_{side}_vs_fresh", ratios(fresh, [each.ready_s for each in found[side]]), "above 1")


async def run(report: Report, repeats: int, quick: bool) -> None:
    """All of them."""
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as bar:
        every = specs(Path(folder), quick)
        for name, spec in bar.track(every.items(), description="starting"):
            told(report, name, *await compare(spec, repeats))


def main() -> None:
    """Measure and report."""
    args = arguments(__doc__)
    repeats = 2 if args.quick else 5
    report = Report("context_start", {"repeats": repeats, "quick": args.quick})
    asyncio.run(run(report, repeats, args.quick))
    report.finish(args.json)


if __name__ == "__main__":
    main()
