"""What a graph goes through whatever it is of: batches, expiry, snapshots that take a while, and crashes.

The state machines of the tests add what belongs into a batch, and say what must hold between batches.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from foreserve.graphs import log
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.program import Program
from foreserve.graphs.store import GraphStore
from foreserve.graphs.writer import GraphWriter, Receipt, Submitted, begin, recover


class GraphMachine(RuleBasedStateMachine):
    """Changes are gathered in a batch, which is applied at any time."""

    graph: LiveGraph
    finish: Callable[[], None] | None = None

    def opened(self, program: Program, store: GraphStore, **words: Any) -> None:
        """A service on this graph begins; `words` are `LiveGraph`'s."""
        self.program, self.words = program, words
        self.folder = Path(tempfile.mkdtemp(prefix="foreserve-machine-"))
        begin(store, self.folder)
        self.graph = LiveGraph(program, store, **words)
        self.writer = GraphWriter(self.graph, self.folder, {}, durable=False)
        self.random = np.random.default_rng(0)
        self.now = 0.0
        self.batch = Changes()

    def recovered(self, store: GraphStore) -> None:
        """This is the graph after a crash: what was gathered is lost."""
        raise NotImplementedError

    @rule()
    def apply(self) -> None:
        self.now += 1.0
        [receipt] = self.writer.write([Submitted(Changes.decode(self.batch.encode()))], self.now)
        assert isinstance(receipt, Receipt)
        self.batch = Changes()

    @rule(age=st.integers(0, 5))
    def expire(self, age: int) -> None:
        self.apply()
        self.writer.expire(self.now - age + 10.0)

    @rule(torn=st.integers(0, 40))
    def crash(self, torn: int) -> None:
        """The process ends, in the middle of an entry or a snapshot that nobody was told of."""
        self.writer.close()
        self.finish = None
        with log.files(self.folder)[-1].open("ab") as file:
            file.write(bytes(range(torn)))
        store = GraphStore(self.graph.store.schema, torch.float64)
        keys = recover(store, self.folder)
        assert keys is not None
        assert store.version == self.graph.store.version
        self.graph = LiveGraph(self.program, store, **self.words)
        self.writer = GraphWriter(self.graph, self.folder, keys, durable=False)
        self.batch = Changes()
        self.recovered(store)

    @precondition(lambda self: self.finish is None)
    @rule()
    def begin_snapshot(self) -> None:
        self.finish = self.writer.snapshot()

    @precondition(lambda self: self.finish is not None)
    @rule()
    def finish_snapshot(self) -> None:
        """After any number of batches; a crash may come first."""
        assert self.finish is not None
        self.finish()
        self.finish = None

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            shutil.rmtree(self.folder)
