"""The one writer of a graph: it joins updates to a batch, brings it to the log, applies it, and tells each what came.

An update that was acknowledged is durable, unless the writer is told not to wait for the disk. One whose key is known
is not applied again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from foreserve.errors import BadRequest, ConfigError, ForeserveError
from foreserve.graphs import log as log_
from foreserve.graphs import snapshot as snapshot_
from foreserve.graphs.changes import Changes
from foreserve.graphs.live import LiveGraph
from foreserve.graphs.log import Entry, Log, LogBroken
from foreserve.graphs.recomputed import RecomputedGraph
from foreserve.graphs.schema import EdgeKey
from foreserve.graphs.store import GraphStore
from foreserve.graphs.update import Effort

MOST_KEYS = 100_000
MOST_KEY = 256
SNAPSHOT_BYTES = 2**28


class Submitted(msgspec.Struct, frozen=True):
    """Changes that a client wants made together; of those with the same `key` only the first are made."""

    changes: Changes
    key: str | None = None


class Receipt(msgspec.Struct, frozen=True):
    """An update is part of `version`. This call made `changes`: none where it had been made before, `again`."""

    version: int
    changes: int
    again: bool = False


@dataclass
class Totals:
    """What the writer has done so far."""

    batches: int = 0
    changes: int = 0
    ignored: int = 0
    expired: int = 0
    snapshots: int = 0
    longest_pause_s: float = 0.0
    """For which a snapshot has kept the writer waiting."""
    effort: Effort = field(default_factory=Effort)


class GraphWriter:
    """Writes to `graph`, and to the log in `folder` if there is one, which `begin` began or `recover` has read.

    `keys` are the idempotency keys that are known. Not for several threads at once.
    """

    def __init__(
        self, graph: LiveGraph | RecomputedGraph, folder: Path | None, keys: dict[str, int], *, durable: bool = True
    ) -> None:
        self.graph = graph
        self.totals = Totals()
        self._keys: OrderedDict[str, int] = OrderedDict(keys)
        self._folder = folder
        self._durable = durable
        self._logged_bytes = 0
        if folder is not None:
            snapshot_.sweep(folder)
            self._logged_bytes = _logged(folder)
        self._log = None if folder is None else Log(folder, graph.store.version)
        self._finishing = False
        self.broken: Exception | None = None
        """Why the log took nothing more in the middle of a batch, of which a part was made."""
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="graph-log")

    def write(self, updates: Sequence[Submitted], at: float) -> list[Receipt | ForeserveError]:
        """Apply updates as one batch at the wall time `at`; what does not fit is refused alone. In the order given.

        Raises LogBroken and OSError when the log takes nothing; nothing of these updates is applied then. Where it
        stops in the middle those that were made have their receipts, the others an error, and `broken` says why.
        """
        results: list[Receipt | ForeserveError | None] = [self._known(update) for update in updates]
        new = [n for n, result in enumerate(results) if result is None]
        first: dict[str, int] = {}
        once = []
        for n in new:
            key = updates[n].key
            if key is None or key not in first:
                once.append(n)
                if key is not None:
                    first[key] = n
        if once:
            for n, made in zip(once, self._together([updates[n] for n in once], at), strict=True):
                results[n] = made
        for n in new:
            if results[n] is None:
                results[n] = self._known(updates[n]) or results[first[updates[n].key or ""]]
        return [result for result in results if result is not None]

    def _known(self, update: Submitted) -> Receipt | ForeserveError | None:
        if update.key is None:
            return None
        if not 0 < len(update.key) <= MOST_KEY:
            return BadRequest(f"an idempotency key has 1 to {MOST_KEY} characters")
        version = self._keys.get(update.key)
        return None if version is None else Receipt(version, 0, again=True)

    def _together(self, updates: list[Submitted], at: float) -> list[Receipt | ForeserveError]:
        keys = tuple(update.key for update in updates if update.key is not None)
        try:
            self._apply(Changes.joined([update.changes for update in updates]), keys, at)
        except BadRequest as error:
            if len(updates) == 1:
                return [error]
            # One of them does not fit, and must not keep the others out.
            return self._each(updates, at)
        return [Receipt(self.graph.store.version, len(update.changes)) for update in updates]

    def _each(self, updates: list[Submitted], at: float) -> list[Receipt | ForeserveError]:
        """One by one. Where the log takes nothing more, those before that are made, and are told so."""
        results: list[Receipt | ForeserveError] = []
        for update in updates:
            try:
                results += self._together([update], at)
            except (LogBroken, OSError) as error:
                if not any(isinstance(each, Receipt) for each in results):
                    raise
                self.broken = error
                told = error if isinstance(error, ForeserveError) else LogBroken(str(error))
                return results + [told] * (len(updates) - len(results))
        return results

    def _apply(self, changes: Changes, keys: tuple[str, ...], at: float) -> None:
        if not len(changes):
            return
        prepared = self.graph.store.prepare(changes, at)
        sequence = self.graph.store.version + 1
        synced = None
        if self._log is not None:
            data = changes.encode()
            self._log.append(Entry(sequence, at, keys, data))
            self._logged_bytes += len(data)
            # The disk works while the update phase does.
            synced = self._beside.submit(self._log.sync) if self._durable else None
        try:
            update = self.graph.propagate(prepared)
        except BaseException:
            if self._log is not None:
                wait([synced] if synced is not None else [])
                self._log.undo()
            raise
        if synced is not None:
            synced.result()
        applied = self.graph.commit(prepared, update)
        if self._log is not None:
            self._log.acknowledge(sequence, self._durable)
        for key in keys:
            self._keys[key] = sequence
        while len(self._keys) > MOST_KEYS:
            self._keys.popitem(last=False)
        totals = self.totals
        totals.batches += 1
        totals.changes += len(changes)
        totals.ignored += applied.ignored
        for name in ("pushes", "rows", "dense"):
            setattr(totals.effort, name, getattr(totals.effort, name) + getattr(applied.effort, name))

    def expire(self, now: float) -> int:
        """Take out the edges that are older than their type lets them be. How many."""
        before = sum(len(edges) for edges in self.graph.store.edges.values())
        for key, edge in self.graph.store.schema.edges.items():
            if edge.expire_s is not None and self._any_before(key, now - edge.expire_s):
                self._apply(Changes().expire_edges(key, now - edge.expire_s), (), now)
        gone = before - sum(len(edges) for edges in self.graph.store.edges.values())
        self.totals.expired += gone
        return gone

    def _any_before(self, key: EdgeKey, until: float) -> bool:
        oldest = self.graph.store.edges[key].oldest
        return bool((oldest <= until).any())

    @property
    def wants_snapshot(self) -> bool:
        """Whether so much was logged since the last one that a restart would take long."""
        return self._log is not None and not self._finishing and self._logged_bytes > SNAPSHOT_BYTES

    def snapshot(self) -> Callable[[], None]:
        """Keep this version, and return what copies it, brings it to the disk and lets go of the log before it: for any
        thread, while this one goes on. Another one may be begun when that has returned."""
        if self._folder is None or self._log is None:
            raise ConfigError("a graph without a log has no snapshots; set `log`")
        folder, store, keys = self._folder, self.graph.store, dict(self._keys)
        frozen = store.freeze()
        try:
            self._log.rotate(frozen.version + 1)
        except BaseException:
            store.thaw()
            raise
        self._finishing = True
        self._logged_bytes = 0
        self.totals.snapshots += 1

        def finish() -> None:
            try:
                arrays = frozen.copy()
            finally:
                store.thaw()
            taken = snapshot_.Snapshot(frozen.schema, frozen.version, keys, arrays)
            snapshot_.write(taken, folder)
            for path in folder.glob("*.safetensors"):
                if path.stem.isdigit() and int(path.stem) < taken.sequence:
                    path.unlink()
            for path in log_.files(folder):
                if log_.first_of(path) <= taken.sequence:
                    path.unlink()
            self._finishing = False

        return finish

    def close(self) -> None:
        """Bring the log to the disk and let go of it."""
        self._beside.shutdown()
        if self._log is not None:
            self._log.close()


def _logged(folder: Path) -> int:
    """Bytes of entries in the files that a restart reads: those that the last snapshot does not make needless."""
    newest, every = snapshot_.newest(folder), log_.files(folder)
    after = 0 if newest is None else int(newest.stem)
    needed = [path for n, path in enumerate(every) if n + 1 == len(every) or log_.first_of(every[n + 1]) > after + 1]
    return sum(max(0, path.stat().st_size - len(log_.MAGIC)) for path in needed)


def recover(store: GraphStore, folder: Path, *, follow: bool = False) -> dict[str, int] | None:
    """Bring an empty store to where the log in `folder` ends; the idempotency keys. None where there is no log.

    With `follow` another process may be writing, and only what that has acknowledged is taken. The tables are to be
    computed afterwards. Raises LogBroken for what cannot be read.
    """
    most = log_.acknowledged(folder).seen if follow else None
    path = snapshot_.newest(folder)
    if path is None:
        if log_.files(folder):
            raise LogBroken(f"{folder} has a log but no snapshot from which it goes on")
        return None
    taken = snapshot_.read(path)
    snapshot_.restore(taken, store, str(path))
    keys: OrderedDict[str, int] = OrderedDict(taken.keys)
    for entry in log_.read(folder, store.version, most):
        store.commit(store.prepare(Changes.decode(entry.changes), entry.at))
        for key in entry.keys:
            keys[key] = entry.sequence
        while len(keys) > MOST_KEYS:
            keys.popitem(last=False)
    return dict(keys)


def begin(store: GraphStore, folder: Path) -> None:
    """Make a loaded store the beginning of a new log in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    snapshot_.write(snapshot_.take(store, {}), folder)


def lock(folder: Path) -> int:
    """Hold the folder against a second writer, as long as the descriptor is open. Raises ConfigError."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigError(f"another process writes to the log in {folder}") from None
    return fd
