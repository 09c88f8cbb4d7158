"""How long a replica takes to be ready, as the fleet sees it, forked out of a context and as a new interpreter.

`python -m benchmarks.context_start` prints a row for each engine; memory is Pss, once the replica is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

from foreserve import LLM, clock
from foreserve.core import EngineSpec
from foreserve.fleet.contexts import Contexts
from foreserve.fleet.local import LocalLauncher
from foreserve.messages import FromWorker, Ready
from foreserve.runtime.footprint import footprint

PLAIN = "def f(x: int) -> int:\n    return 2 * x\n"
ENGINE = "foreserve.engines.python"


class Ready1:
    """A listener that waits for the first `Ready`."""

    def __init__(self) -> None:
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def heard(self, message: FromWorker) -> None:
        if isinstance(message, Ready):
            self.pid.set_result(message.pid)

    def exited(self, reason: str) -> None:
        if not self.pid.done():
            self.pid.set_exception(RuntimeError(reason))


async def ready_s(launcher: LocalLauncher, spec: EngineSpec, idle_s: float = 0.3) -> tuple[float, int]:
    """Seconds from launch to `Ready`, and the replica's Pss in bytes `idle_s` later. It is ended."""
    listener = Ready1()
    began = clock.precise()
    connection = await launcher.launch("replica", spec, listener)
    pid = await listener.pid
    took = clock.precise() - began
    await asyncio.sleep(idle_s)
    found = footprint(pid)
    pss = 0 if found is None else found.pss
    await connection.stop(5.0)
    return took, pss


async def compare(name: str, spec: EngineSpec, repeats: int) -> None:
    """Print one row: the medians of `repeats` starts each way, taking turns."""
    contexts = Contexts()
    fresh, forked = LocalLauncher(), LocalLauncher(contexts=contexts)
    cold, _ = await ready_s(forked, spec)
    rows = [(await ready_s(fresh, spec), await ready_s(forked, spec)) for _ in range(repeats)]
    (context,) = await contexts.stats()
    times = [statistics.median(row[way][0] for row in rows) for way in (0, 1)]
    pss = [statistics.median(row[way][1] for row in rows) / 2**20 for way in (0, 1)]
    print(
        f"{name:24} fresh {times[0]:6.3f} s  forked {times[1]:6.3f} s  first, with its context {cold:6.3f} s  "
        f"fork {1e3 * (context.last_fork_s or 0):4.1f} ms  Pss fresh {pss[0]:5.0f} forked {pss[1]:5.0f} MiB  "
        f"context alone {(context.pss_bytes or 0) / 2**20:4.0f} MiB",
        flush=True,
    )
    await forked.close()
    await contexts.close()


def specs(folder: Path) -> dict[str, EngineSpec]:
    """By name, what is compared."""
    plain, torch = folder / "plain.py", folder / "with_torch.py"
    plain.write_text(PLAIN)
    torch.write_text("import torch\n\n" + PLAIN)
    factory = f"{ENGINE}:PythonEngine"
    return {
        "function": EngineSpec(factory=factory, options={"target": f"{plain}:f"}, imports=(ENGINE,)),
        "function, torch": EngineSpec(factory=factory, options={"target": f"{torch}:f"}, imports=(ENGINE, "torch")),
        "SmolLM2, transformers": LLM("smollm2", engine="transformers").engines()[0],
        "SmolLM2, openvino": LLM("smollm2", engine="openvino", kv_cache_gb=0.25).engines()[0],
    }


async def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, spec in specs(Path(folder)).items():
            await compare(name, spec, arguments.repeats)


if __name__ == "__main__":
    asyncio.run(main())
