"""A graph as an engine: updates in their order to the one writer, queries together, both beside each other.

Two threads: one applies batches of what waits, one answers what is asked. The loop only hands over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from foreserve import clock
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.errors import BadRequest, EngineStartError, ForeserveError
from foreserve.graphs import snapshot
from foreserve.graphs.answers import answers, standing
from foreserve.graphs.asked import Answered, Ask, Asked, Made, Query, Standing, Update
from foreserve.graphs.changes import Changes
from foreserve.graphs.follower import Follower
from foreserve.graphs.intake import Intake
from foreserve.graphs.log import LogBroken
from foreserve.graphs.making import GraphOptions, Opened, opened
from foreserve.graphs.schema import written
from foreserve.graphs.writer import GraphWriter, Receipt, Submitted, lock
from foreserve.tensors import tensor_of

T = TypeVar("T")

FOLLOW_S = 0.02
"""How often a read replica looks into the log."""

STUCK_S = 5.0
"""For how long a read replica tries again where an entry that was acknowledged does not read: a file system that is
shared may show it late."""

STOPPING = "the service is stopping, and this may have been made; ask again with its key"

EXPIRE_SHARE = 0.01
"""Of the time that an edge lives: how often it is looked for edges that have expired, at least every second."""

MOST_RUNNING = 1024


class GraphEngine:
    """Serves the graph of `options`. With `follow` it is a read replica of the one that writes the same log.

    `batch_changes` and `batch_wait_s` are `Intake`'s.
    """

    def __init__(
        self, follow: bool = False, batch_changes: int = 32_768, batch_wait_s: float = 0.0, **options: Any
    ) -> None:
        self._options = msgspec.convert(options, GraphOptions)
        self._follow = follow
        self._intake = Intake(batch_changes, batch_wait_s)
        self._queries: list[tuple[Query, asyncio.Future[tuple[int, Any]]]] = []
        self._asked = asyncio.Event()
        self._committed = asyncio.Condition()
        self._failed: asyncio.Future[str] | None = None
        self._caught_up = 0.0
        self._running: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="graph-writer")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="graph-reader")
        self._snapshots = ThreadPoolExecutor(1, thread_name_prefix="graph-snapshot")
        self._held: int | None = None
        self._writer: GraphWriter | None = None
        self._follower: Follower | None = None
        self._opened: Opened | None = None

    async def start(self) -> EngineInfo:
        """Make or recover the graph. Raises EngineStartError."""
        self._failed = asyncio.get_running_loop().create_future()
        folder = None if self._options.log is None else Path(self._options.log)
        try:
            if self._follow:
                assert folder is not None, "a read replica follows a log"
                while snapshot.newest(folder) is None:  # noqa: ASYNC110 - another process makes it
                    await asyncio.sleep(FOLLOW_S)
            elif folder is not None:
                self._held = lock(folder)
            wall = clock.wall()
            self._opened = await self._on(self._writing, lambda: opened(self._options, wall, follow=self._follow))
            graph = self._opened.graph
            if self._follow:
                assert folder is not None
                self._follower = Follower(graph, folder)
                began = clock.now()
                await self._on(self._writing, self._follower.catch_up)
                if self._follower.caught_up:
                    self._caught_up = began
            else:
                self._writer = GraphWriter(graph, folder, self._opened.keys, durable=self._options.durable)
        except (ForeserveError, OSError) as error:
            self._let_go()
            raise EngineStartError(str(error)) from error
        self._tasks = [asyncio.create_task(self._follow_log() if self._follow else self._write())]
        self._tasks.append(asyncio.create_task(self._read()))
        store = graph.store
        return EngineInfo(
            batching="continuous",
            capacity={"slots": float(MOST_RUNNING), "writes": 0.0 if self._follow else float(MOST_RUNNING)},
            facts={
                "nodes": {name: node.features for name, node in store.schema.nodes.items()},
                "edges": {written(key): msgspec.to_builtins(edge) for key, edge in store.schema.edges.items()},
                "level": graph.level,
                "recovered_version": store.version,
            },
        )

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`. One chunk with the answer, then the finish."""
        self._running.add(work.id)
        try:
            made = await self._answer(msgspec.convert(msgspec.to_builtins(work.payload, builtin_types=(bytes,)), Asked))
        except BadRequest as error:
            yield Chunk(
                id=work.id, index=0, attempt=work.attempt, finish=Finish(reason="rejected", error=error.message)
            )
        except (ForeserveError, OSError) as error:
            yield Chunk(id=work.id, index=0, attempt=work.attempt, finish=Finish(reason="error", error=str(error)))
        else:
            yield Chunk(id=work.id, index=0, attempt=work.attempt, data=made)
            yield Chunk(id=work.id, index=1, attempt=work.attempt, finish=Finish(reason="stop", usage={"items": 1.0}))
        finally:
            self._running.discard(work.id)

    def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncIterator[Sequence[Chunk]]:
        """Not of this engine."""
        raise NotImplementedError("queries come one by one and are joined here")

    async def _answer(self, asked: Asked) -> Any:
        match asked:
            case Query():
                return await self._query(asked)
            case Update():
                return await self._update(asked)
            case Ask():
                return await self._standing(asked)

    # --- updates

    async def _update(self, asked: Update) -> Made:
        if self._writer is None:
            raise BadRequest("this is a read replica; updates go to the writer")
        waiting = self._intake.add(Submitted(Changes.decode(asked.changes), asked.key), clock.now())
        # Whoever leaves does not take back what may be in the log already.
        receipt = await asyncio.shield(waiting.done)
        return Made(receipt.version, receipt.changes, receipt.again)

    async def _write(self) -> None:
        assert self._writer is not None
        writer = self._writer
        every = self._expiry_s()
        expires = clock.now() + every
        while True:
            try:
                async with asyncio.timeout_at(expires if every < float("inf") else None):
                    await self._intake.news.wait()
            except TimeoutError:
                pass
            try:
                if clock.now() >= expires:
                    wall = clock.wall()
                    await self._on(self._writing, lambda wall=wall: writer.expire(wall))  # type: ignore[misc]
                    expires = clock.now() + every
                if self._intake.waiting:
                    await self._batch(writer)
                    if writer.broken is not None:
                        raise writer.broken
                if writer.wants_snapshot:
                    began = clock.now()
                    finish = await self._on(self._writing, writer.snapshot)
                    writer.totals.longest_pause_s = max(writer.totals.longest_pause_s, clock.now() - began)
                    asyncio.ensure_future(self._on(self._snapshots, finish)).add_done_callback(self._snapshot_done)
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")
                return

    async def _batch(self, writer: GraphWriter) -> None:
        """Apply the updates that wait, as many as a batch may have."""
        if (left := self._intake.wait_s(clock.now())) > 0:
            await asyncio.sleep(left)
        batch, wall = self._intake.take(), clock.wall()
        made: list[Receipt | ForeserveError] = [LogBroken(STOPPING)] * len(batch)
        try:
            made = await self._on(self._writing, lambda: writer.write(batch, wall))
        except Exception as error:
            made = [error if isinstance(error, ForeserveError) else LogBroken(str(error))] * len(batch)
            raise
        finally:
            self._intake.settle(made)
            async with self._committed:
                self._committed.notify_all()

    def _expiry_s(self) -> float:
        assert self._opened is not None
        lives = [edge.expire_s for edge in self._opened.graph.store.schema.edges.values() if edge.expire_s is not None]
        return max(1.0, EXPIRE_SHARE * min(lives)) if lives else float("inf")

    async def _follow_log(self) -> None:
        follower = self._follower
        assert follower is not None
        moved = clock.now()
        while True:
            began = clock.now()
            try:
                applied = await self._on(self._writing, follower.catch_up)
                if applied or follower.caught_up:
                    moved = clock.now()
                elif clock.now() - moved >= STUCK_S:
                    raise follower.stuck()
            except Exception as error:
                self._fail(f"{type(error).__name__}: {error}")
                return
            if follower.caught_up:
                # Also where something was applied: under writes that never pause there is always something.
                self._caught_up = began
                async with self._committed:
                    self._committed.notify_all()
            if not applied:
                await asyncio.sleep(FOLLOW_S)

    # --- queries

    async def _query(self, asked: Query) -> Answered:
        if asked.max_staleness_ms is not None:
            await self._fresher(asked.max_staleness_ms / 1000)
        answered: asyncio.Future[tuple[int, Any]] = asyncio.get_running_loop().create_future()
        staleness = self._staleness()
        self._queries.append((asked, answered))
        self._asked.set()
        version, rows = await answered
        return Answered(version, 1000 * staleness, tensor_of(rows))

    def _staleness(self) -> float:
        """How long ago the oldest update came that no answer has yet."""
        if self._follow:
            return max(0.0, clock.now() - self._caught_up)
        oldest = self._intake.oldest
        return 0.0 if oldest is None else clock.now() - oldest

    async def _fresher(self, most: float) -> None:
        """Wait until the staleness is at most this; the request's own deadline ends the wait."""
        async with self._committed:
            # A follower is never quite there, but as near as it looks into the log.
            least = 2 * FOLLOW_S if self._follow else 0.0
            await self._committed.wait_for(lambda: self._staleness() <= max(most, least))

    async def _read(self) -> None:
        """Answer together what was asked while the last answers were made."""
        assert self._opened is not None
        graph = self._opened.graph
        while True:
            await self._asked.wait()
            self._asked.clear()
            queries, self._queries = self._queries, []
            asked = [query for query, _ in queries]
            results = await self._on(self._reading, lambda asked=asked: answers(graph, asked))  # type: ignore[misc]
            for (_, answered), result in zip(queries, results, strict=True):
                if answered.done():
                    continue
                if isinstance(result, BaseException):
                    answered.set_exception(result)
                else:
                    answered.set_result(result)

    # --- the rest

    async def _standing(self, asked: Ask) -> Standing:
        assert self._opened is not None
        graph, drift = self._opened.graph, None
        if asked.refresh:
            drift = await self._on(self._writing, graph.drift)
            await self._on(self._writing, graph.refresh)
        totals = None if self._writer is None else self._writer.totals
        return standing(graph, totals, len(self._intake), self._staleness(), drift)

    async def _on(self, threads: ThreadPoolExecutor, fn: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, fn)

    def _snapshot_done(self, finished: asyncio.Future[None]) -> None:
        if not finished.cancelled() and (error := finished.exception()) is not None:
            self._fail(f"no snapshot could be written: {error}")

    def _fail(self, why: str) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(why)

    async def failed(self) -> str:
        """See `Engine`. A log that takes nothing more is read anew by the next process."""
        assert self._failed is not None, "`start` comes first"
        return await asyncio.shield(self._failed)

    async def cancel(self, request_id: str) -> None:
        """See `Engine`. A query is answered to nobody; an update that came is made."""

    async def load(self) -> EngineLoad:
        """See `Engine`."""
        return EngineLoad(running=len(self._running), waiting=self._intake.waiting)

    async def close(self) -> None:
        """Bring the log to the disk."""
        try:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for threads in (self._writing, self._reading, self._snapshots):
                threads.shutdown()
            if self._writer is not None:
                try:
                    self._writer.close()
                except ForeserveError:
                    pass  # it was told when it happened
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None
