"""Graph neural networks on graphs that change: what an update costs, how many a second, and how stale answers are.

`python -m benchmarks.graphs [--quick] [--json FILE] [--minutes M]`. Generated power-law graphs, width 128, ten edges a
node, and real ones. An update is a batch of 256 directed edge changes, half of them deletes. Against it, in the same
run, in turn and on the same batches:

- full recompute: the model's own forward over all nodes (PyTorch Geometric);
- affected region: the rows that a batch reaches, layer by layer, each from all its in-edges;
- all layers: our differences, brought to the last layer too.

With one thread of torch (`OMP_NUM_THREADS=1`) these are seconds of the processor, else of the wall.

Then the service: changes a second with the durable log, and answers while updates come, against computing an answer
only after all updates (`infer-after-update`) and answering from a full table that lags (`infer-on-stale`). Last what
the named figures do not need, as long as there are minutes left; what was left out is said.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Report, arguments, console
from benchmarks.graphs_exact import errors, memory, typed
from benchmarks.graphs_model import WIDTH, loaded
from benchmarks.graphs_real import still, streams
from benchmarks.graphs_service import save, sustained, under_load
from benchmarks.graphs_updates import CHANGES, Sizes, by_size, compared, with_expiry

NAMED = {
    "full": "update_vs_full_recompute_1e6",
    "affected": "update_vs_affected_1e6",
    "all_layers": "update_vs_all_layers_1e6",
}
RATES = (10.0, 40.0, 100.0, 160.0)
"""Updates a second, each of 256 changes."""


def headline(report: Report, edges: int, sizes: Sizes) -> None:
    """The update phase of a 2-layer GCN, with ends drawn evenly and with ends where edges have theirs."""
    store = loaded(edges // 10, edges, np.random.default_rng(0))
    name = compared(report, store, "gcn", 2, sizes)
    for side, key in NAMED.items():
        ratio = f"{side}_ratio_{name}"
        report.add(key, report.figures[ratio], "100" if side == "full" else "")
        report.spread[key] = report.spread[ratio]
    compared(report, store, "gcn", 2, Sizes(sizes.batches, sizes.affected // 2, 1), hubs=True)


def service(report: Report, quick: bool) -> None:
    """Changes a second, then answers under load."""
    folder = Path(tempfile.mkdtemp(prefix="foreserve-graphs-"))
    try:
        store = save(folder, *((17_000, 120_000) if quick else (170_000, 1_200_000)))
        asyncio.run(sustained(report, folder, store, 4.0 if quick else 20.0))
        under_load(report, folder, store, RATES[:2] if quick else RATES, 2.0 if quick else 8.0)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """See the module's docstring."""
    asked = arguments(
        __doc__, more=lambda parser: parser.add_argument("--minutes", type=float, default=14.0, help="at most so many")
    )
    quick, began = asked.quick, time.monotonic()
    settings = {"width": WIDTH, "changes": CHANGES, "threads": torch.get_num_threads(), "quick": quick}
    report = Report("graphs", settings)

    def left(share: float) -> float:
        """Seconds until this share of the time is over."""
        return began + 60 * float(asked.minutes) * share - time.monotonic()

    some, all_models = Sizes(40, 10, 3), [(kind, layers) for layers in (2, 3) for kind in ("gcn", "sage", "gin")]
    parts: dict[str, Callable[[], object]] = {
        "the update phase": lambda: headline(report, 10**5 if quick else 10**6, Sizes(10, 4, 2) if quick else some),
        "the service": lambda: service(report, quick),
        "exactness": lambda: errors(report, 10**4 if quick else 10**5),
        "the typed example": lambda: typed(report, 5 if quick else 20),
        "memory": lambda: memory(report, (10**5,) if quick else (10**5, 10**6, 10**7)),
        "streams of real events": lambda: streams(report, 10 if quick else 200),
        "real graphs": lambda: still(report, 8 if quick else 24),
        "expiry": lambda: with_expiry(report, 10_000 if quick else 100_000, 10**5 if quick else 10**6, 10),
    }
    if not quick:
        parts["10^5 edges"] = lambda: by_size(report, 10**5, all_models, Sizes(40, 10, 3), lambda: left(0.75))
        parts["10^7 edges"] = lambda: by_size(report, 10**7, all_models[:3], Sizes(10, 0, 1), lambda: left(0.85))
        parts["10^6 edges"] = lambda: by_size(report, 10**6, all_models[1:], Sizes(15, 3, 2), lambda: left(0.97))
    if quick:
        report.note("quick: what is named 1e6 is of 1e5 edges, and no graph of 1e7 edges is made")
    for name, part in parts.items():
        console.print(f"-- {name} ({time.monotonic() - began:.0f} s)", highlight=False)
        try:
            part()
        except Exception as error:
            # What else was measured is worth telling.
            traceback.print_exc()
            report.note(f"{name} could not be measured: {type(error).__name__}: {error}")
    report.figures["minutes"] = (time.monotonic() - began) / 60
    report.finish(asked.json)


if __name__ == "__main__":
    main()
