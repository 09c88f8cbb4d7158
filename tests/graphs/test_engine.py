import asyncio
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from foreserve import clock
from foreserve.graphs import engine as engine_
from foreserve.graphs import log as log_
from foreserve.graphs.changes import Changes
from foreserve.graphs.engine import GraphEngine
from foreserve.graphs.follower import Follower
from foreserve.graphs.schema import EDGE
from foreserve.graphs.writer import GraphWriter, Submitted
from tests.graphs.test_writer import _new, _recovered


def _edge(n: int) -> Submitted:
    return Submitted(Changes().insert_edges(EDGE, [n % 60], [(n + 1) % 60]), f"key-{n}")


def _follows(folder: Path) -> tuple[GraphEngine, Follower]:
    """A read replica of the log in `folder` that has not looked yet."""
    made = GraphEngine(follow=True, target="none")
    made._follower = Follower(_recovered(folder)[0], folder)
    made._failed = asyncio.get_running_loop().create_future()
    return made, made._follower


class Steady(Follower):
    """Finds one more at each look: its writer makes one just before."""

    def __init__(self, writer: GraphWriter, *words: Any) -> None:
        super().__init__(*words)
        self._writer = writer
        self._count = itertools.count()

    def catch_up(self) -> int:
        self._writer.write([_edge(next(self._count))], 0.0)
        return super().catch_up()


async def test_a_replica_is_fresh_under_writes_that_never_pause(tmp_path: Path) -> None:
    writer = _new(tmp_path)
    made, follower = _follows(tmp_path)
    made._follower = Steady(writer, follower._graph, tmp_path)
    made._caught_up = clock.now() - 100
    task = asyncio.create_task(made._follow_log())
    began = clock.now()
    async with asyncio.timeout(10):
        await made._fresher(10.0)
    assert made._caught_up >= began
    task.cancel()
    await asyncio.wait([task])
    made._writing.shutdown()
    writer.close()


async def test_a_replica_that_cannot_read_what_was_acknowledged_is_not_fresh_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _new(tmp_path)
    made, follower = _follows(tmp_path)
    assert follower.catch_up() == 0
    assert follower.caught_up
    writer.write([_edge(0)], 0.0)
    path = log_.files(tmp_path)[-1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    writer.write([_edge(1)], 0.0)
    monkeypatch.setattr(engine_, "STUCK_S", 0.0)
    made._caught_up = 1.0
    async with asyncio.timeout(10):
        await made._follow_log()
        assert "entry 2 does not read, but entries up to 3 were acknowledged" in await made.failed()
    assert made._caught_up == 1.0
    made._writing.shutdown()
    writer.close()


async def test_an_update_that_is_applied_while_the_service_stops_is_told_that_it_may_be_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer, made = _new(None), GraphEngine(target="none")
    made._writer = writer
    entered, leave, write = threading.Event(), threading.Event(), writer.write

    def slow(*words: Any) -> Any:
        entered.set()
        leave.wait(10)
        return write(*words)

    monkeypatch.setattr(writer, "write", slow)
    waiting = made._intake.add(_edge(0), clock.now())
    task = asyncio.create_task(made._batch(writer))
    await asyncio.to_thread(entered.wait, 10)
    task.cancel()
    await asyncio.wait([task])
    leave.set()
    with pytest.raises(log_.LogBroken, match="may have been made; ask again with its key"):
        await waiting.done
    await asyncio.to_thread(made._writing.shutdown)
    assert writer.graph.store.version == 2
