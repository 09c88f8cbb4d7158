"""A writer that is killed: writes batches to a log, and says each that was acknowledged, by its number."""

import sys
from pathlib import Path

import numpy as np

from foreserve.graphs.live import LiveGraph
from foreserve.graphs.schema import EdgeType, Schema
from foreserve.graphs.taking_apart import take_apart
from foreserve.graphs.writer import GraphWriter, Submitted, begin
from tests.graphs.models import loaded, mixed_batch, net

SCHEMA = Schema.homogeneous(4, EdgeType(multi=True))


def main(folder: Path) -> None:
    store = loaded(SCHEMA, 60, 300)
    begin(store, folder)
    writer = GraphWriter(LiveGraph(take_apart(net("gcn", [4, 8, 3]), SCHEMA), store), folder, {})
    random = np.random.default_rng(0)
    for step in range(10_000):
        [receipt] = writer.write([Submitted(mixed_batch(store, step, random), f"key-{step}")], float(step))
        print(step, getattr(receipt, "version", receipt), flush=True)
        if step % 10 == 9:
            writer.snapshot()()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
