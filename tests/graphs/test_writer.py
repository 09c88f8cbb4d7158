import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreserve.errors import BadRequest, ConfigError
from foreserve.graphs import log as log_
from foreserve.graphs import snapshot as snapshot_
from foreserve.graphs import writer as writer_
from foreserve.graphs.changes import Changes
from foreserve.graphs.follower import Follower
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.log import Log, LogBroken
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore
from foreserve.graphs.taking_apart import take_apart
from foreserve.graphs.writer import GraphWriter, Receipt, Submitted, begin, lock, recover
from tests.graphs.crashing import SCHEMA
from tests.graphs.models import error, loaded, mixed_batch, net

MODEL = net("gcn", [4, 8, 3])
PROGRAM = take_apart(MODEL, SCHEMA)
ROOT = Path(__file__).resolve().parents[2]


def _new(folder: Path | None, schema: Schema = SCHEMA, **words: Any) -> GraphWriter:
    store = loaded(schema, 60, 300)
    if folder is not None:
        begin(store, folder)
    return GraphWriter(LiveGraph(PROGRAM, store), folder, {}, **words)


def _recovered(folder: Path, schema: Schema = SCHEMA) -> tuple[LiveGraph, dict[str, int]]:
    store = GraphStore(schema, torch.float64)
    keys = recover(store, folder)
    assert keys is not None
    return LiveGraph(PROGRAM, store), keys


def _same(a: LiveGraph, b: LiveGraph) -> bool:
    every = a.store.alive(NODE)
    alike = a.store.version == b.store.version and every.tolist() == b.store.alive(NODE).tolist()
    return alike and torch.allclose(a.query(NODE, every).rows, b.query(NODE, every).rows, atol=1e-12)


def test_what_does_not_fit_is_refused_alone() -> None:
    writer = _new(None)
    good, bad = Changes().insert_edges(EDGE, [0], [1]), Changes().insert_edges(EDGE, [0], [999])
    receipts = writer.write([Submitted(good), Submitted(bad), Submitted(good)], 0.0)
    assert [type(each) for each in receipts] == [Receipt, BadRequest, Receipt]
    assert "changes[0] (insert_edges node:to:node): there is no node 999" in str(receipts[1])
    assert writer.totals.changes == 2


def test_updates_that_come_together_are_one_version() -> None:
    writer = _new(None)
    receipts = writer.write([Submitted(Changes().insert_edges(EDGE, [n], [n + 1])) for n in range(5)], 0.0)
    assert [each.version for each in receipts if isinstance(each, Receipt)] == [2] * 5
    assert error(writer.graph, MODEL) < 1e-12


def test_a_key_applies_once_also_in_one_batch_and_after_a_restart(tmp_path: Path) -> None:
    writer = _new(tmp_path)
    update = Submitted(Changes().insert_edges(EDGE, [0], [1]), "a")
    before = len(writer.graph.store.edges[EDGE])
    first, second = writer.write([update, update], 0.0)
    assert isinstance(first, Receipt)
    assert isinstance(second, Receipt)
    assert (first.again, second.again, second.version) == (False, True, first.version)
    writer.write([Submitted(Changes().insert_edges(EDGE, [2], [1]), "b")], 0.0)
    writer.close()
    for at_snapshot in (False, True):
        graph, keys = _recovered(tmp_path)
        writer = GraphWriter(graph, tmp_path, keys)
        assert writer.write([update], 9.0) == [Receipt(first.version, 0, again=True)]
        assert len(graph.store.edges[EDGE]) == before + 2
        if not at_snapshot:
            writer.snapshot()()
        writer.close()
    assert isinstance(writer._known(Submitted(Changes(), "")), BadRequest)


def test_a_key_that_was_refused_may_come_again() -> None:
    writer = _new(None)
    bad = Submitted(Changes().insert_edges(EDGE, [0], [999]), "a")
    assert [type(each) for each in writer.write([bad, bad], 0.0)] == [BadRequest, BadRequest]
    assert isinstance(writer.write([Submitted(Changes().insert_edges(EDGE, [0], [9]), "a")], 0.0)[0], Receipt)


@pytest.mark.parametrize("durable", [True, False])
def test_recovery_gives_what_was(tmp_path: Path, durable: bool) -> None:
    writer = _new(tmp_path, durable=durable)
    random = np.random.default_rng(0)
    for step in range(30):
        writer.write([Submitted(mixed_batch(writer.graph.store, step, random))], float(step))
        if step == 11:
            finish = writer.snapshot()
        if step == 15:
            finish()
    writer.close()
    graph, _ = _recovered(tmp_path)
    assert _same(graph, writer.graph)
    assert error(graph, MODEL) < 1e-12
    assert len(log_.files(tmp_path)) == 1
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_expiry_is_in_the_log(tmp_path: Path) -> None:
    schema = Schema.homogeneous(4, EdgeType(multi=True, expire_s=5.0))
    writer = _new(tmp_path, schema)
    before = len(writer.graph.store.edges[EDGE])
    writer.write([Submitted(Changes().insert_edges(EDGE, [0, 1], [5, 6], time=[3.0, 9.0]))], 9.0)
    assert writer.expire(4.0) == 0
    assert writer.expire(8.0) == before + 1
    assert writer.expire(8.5) == 0
    writer.close()
    graph, _ = _recovered(tmp_path, schema)
    assert graph.store.edges[EDGE].columns()["time"].tolist() == [9.0]
    assert _same(graph, writer.graph)


@pytest.mark.parametrize("after", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2, 3, 4, 5, 6))])
def test_a_writer_that_is_killed_loses_nothing_that_it_acknowledged(tmp_path: Path, after: int) -> None:
    command = [sys.executable, "-m", "tests.graphs.crashing", str(tmp_path)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    assert process.stdout is not None
    acknowledged = []
    for line in process.stdout:
        acknowledged.append(line)
        if len(acknowledged) == 7 + 6 * after:
            # Anywhere in what follows: in an update, a sync, a snapshot.
            time.sleep(0.0013 * after)
            process.kill()
            break
    acknowledged += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    last = [line.split() for line in acknowledged if line.endswith("\n")][-1]
    graph, keys = _recovered(tmp_path)
    assert graph.store.version >= int(last[1])
    assert f"key-{last[0]}" in keys
    # The same batches on a graph that was never killed.
    store, random = loaded(SCHEMA, 60, 300), np.random.default_rng(0)
    for step in range(graph.store.version - 1):
        store.commit(store.prepare(mixed_batch(store, step, random), float(step)))
    assert _same(LiveGraph(PROGRAM, store), graph)
    assert error(graph, MODEL) < 1e-12


@pytest.mark.parametrize("target", ["foreserve.graphs.live.propagate", "foreserve.graphs.log._write"])
def test_an_update_that_fails_on_the_way_is_in_no_log(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _new(tmp_path)

    def fails(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(target, fails)
        with pytest.raises(MemoryError):
            writer.write([Submitted(Changes().insert_edges(EDGE, [0], [1]), "a")], 0.0)
    version = writer.graph.store.version
    assert isinstance(writer.write([Submitted(Changes().insert_edges(EDGE, [2], [1]), "b")], 0.0)[0], Receipt)
    writer.close()
    graph, keys = _recovered(tmp_path)
    assert graph.store.version == version + 1
    assert [*keys] == ["b"]
    assert _same(graph, writer.graph)


def test_an_update_that_the_disk_may_not_have_is_not_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _new(tmp_path)

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(log_.os, "fsync", fails)
        with pytest.raises(LogBroken):
            writer.write([Submitted(Changes().insert_edges(EDGE, [0], [1]))], 0.0)
    assert writer.graph.store.version == 1
    with pytest.raises(LogBroken, match="restart the service"):
        writer.write([Submitted(Changes().insert_edges(EDGE, [0], [1]))], 0.0)


def test_a_snapshot_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    _new(tmp_path).close()
    path = snapshot_.newest(tmp_path)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[-3] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(LogBroken, match="is not what was written"):
        _recovered(tmp_path)
    path.write_bytes(b"no")
    with pytest.raises(LogBroken, match="cannot be read as a snapshot"):
        _recovered(tmp_path)
    path.unlink()
    with pytest.raises(LogBroken, match="a log but no snapshot"):
        _recovered(tmp_path)


def test_a_log_of_another_schema_is_refused(tmp_path: Path) -> None:
    _new(tmp_path).close()
    with pytest.raises(LogBroken, match="holds a graph of another schema"):
        recover(GraphStore(Schema.homogeneous(5), torch.float64), tmp_path)


def test_where_there_is_nothing_there_is_nothing_to_recover(tmp_path: Path) -> None:
    assert recover(GraphStore(SCHEMA, torch.float64), tmp_path) is None


def test_two_writers_of_one_log_are_refused(tmp_path: Path) -> None:
    held = lock(tmp_path / "log")
    with pytest.raises(ConfigError, match="another process writes to the log"):
        lock(tmp_path / "log")
    os.close(held)
    os.close(lock(tmp_path / "log"))


def test_keys_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_, "MOST_KEYS", 2)
    writer = _new(None)
    for key in "abc":
        writer.write([Submitted(Changes().insert_edges(EDGE, [0], [1]), key)], 0.0)
    assert [*writer._keys] == ["b", "c"]
    with pytest.raises(ConfigError, match="without a log"):
        writer.snapshot()


def test_those_that_follow_see_only_what_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _new(tmp_path)
    graph, _ = _recovered(tmp_path)
    follower = Follower(graph, tmp_path)
    sync, seen = Log.sync, []

    def synced(log: Log) -> None:
        """Just before the writer knows that its entry is on the disk."""
        follower.catch_up()
        store = GraphStore(SCHEMA, torch.float64)
        recover(store, tmp_path, follow=True)
        seen.append((graph.store.version, store.version, writer.graph.store.version))
        sync(log)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "sync", synced)
        for n in range(3):
            writer.write([Submitted(Changes().insert_edges(EDGE, [0], [n]))], 0.0)
    assert seen == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
    assert follower.catch_up() == 1
    writer.snapshot()()
    writer.write([Submitted(Changes().insert_edges(EDGE, [0], [7]))], 0.0)
    assert follower.catch_up() == 1
    assert _same(graph, writer.graph)
    writer.close()


def test_a_snapshot_is_begun_when_the_last_one_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_, "SNAPSHOT_BYTES", 0)
    writer = _new(tmp_path)
    update = Submitted(Changes().insert_edges(EDGE, [0], [1]))
    assert not writer.wants_snapshot
    writer.write([update], 0.0)
    assert writer.wants_snapshot
    finish = writer.snapshot()
    writer.write([update], 0.0)
    assert not writer.wants_snapshot
    finish()
    assert writer.wants_snapshot
    writer.close()


def test_what_is_in_the_log_counts_towards_a_snapshot_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_, "SNAPSHOT_BYTES", 2000)
    writer = _new(tmp_path)
    restarts = 0
    while not writer.wants_snapshot and restarts < 20:
        writer.write([Submitted(Changes().insert_edges(EDGE, [n], [n + 1])) for n in range(10)], 0.0)
        writer.close()
        writer = GraphWriter(*_in(tmp_path))
        restarts += 1
    assert 1 < restarts < 20
    writer.snapshot()()
    writer.close()
    writer = GraphWriter(*_in(tmp_path))
    assert not writer._logged_bytes
    writer.close()


def _in(folder: Path) -> tuple[LiveGraph, Path, dict[str, int]]:
    graph, keys = _recovered(folder)
    return graph, folder, keys


def test_a_file_of_the_log_that_cannot_be_begun_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _new(tmp_path)
    writer.write([Submitted(Changes().insert_edges(EDGE, [0], [1]), "a")], 0.0)
    opens, fsync = os.open, os.fsync

    def full(path: Any, *words: Any, **more: Any) -> int:
        if str(path).endswith(".log"):
            raise OSError(24, "Too many open files")
        return opens(path, *words, **more)

    def fails(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("3.log"):
            raise OSError(5, "Input/output error")
        fsync(fd)

    for name, broken in (("open", full), ("fsync", fails)):
        with monkeypatch.context() as patch:
            patch.setattr(log_.os, name, broken)
            with pytest.raises(OSError, match=r"Too many|Input/output"):
                writer.snapshot()
        assert len(log_.files(tmp_path)) == 1
    assert isinstance(writer.write([Submitted(Changes().insert_edges(EDGE, [2], [1]), "b")], 0.0)[0], Receipt)
    writer.close()
    with (tmp_path / "other").open("wb") as other:
        writer.close()
        other.write(b"whose number is not closed")
    graph, keys = _recovered(tmp_path)
    assert [*keys] == ["a", "b"]
    assert _same(graph, writer.graph)


def test_nothing_stays_of_a_snapshot_that_came_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _new(tmp_path)
    writer.write([Submitted(Changes().insert_edges(EDGE, [0], [1]))], 0.0)
    finish = writer.snapshot()

    def fails(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="No space"):
            finish()
    assert not list(tmp_path.glob("*.making"))
    writer.close()
    (tmp_path / f"{9:020d}.making").write_bytes(b"half")
    graph, keys = _recovered(tmp_path)
    GraphWriter(graph, tmp_path, keys).close()
    assert not list(tmp_path.glob("*.making"))


def test_what_was_made_before_the_log_broke_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = _new(tmp_path)
    update = [Submitted(Changes().insert_edges(EDGE, [0], [to]), key) for to, key in ((1, "a"), (999, "b"), (2, "c"))]
    sync, syncs = Log.sync, []

    def second_fails(log: Log) -> None:
        syncs.append(log)
        if len(syncs) == 2:
            raise LogBroken("the log takes nothing more")
        sync(log)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "sync", second_fails)
        results = writer.write([*update, update[2], update[0]], 0.0)
    assert [type(each) for each in results] == [Receipt, BadRequest, LogBroken, LogBroken, Receipt]
    assert isinstance(writer.broken, LogBroken)
    assert writer.graph.store.version == 2
    writer.close()
