"""A user's own Python code that serves many calls at once: each parameter is a list, and so is what it returns.

One batch runs at a time. Calls that bring different arguments are not mixed: they run one group after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from foreserve import clock
from foreserve.calling import Call
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import Numbered
from foreserve.engines.failure import Failure
from foreserve.engines.python import too_late
from foreserve.engines.python_code import Code, load_code
from foreserve.engines.python_threads import STOP_S, Run, Threads
from foreserve.engines.python_values import Raised, sent
from foreserve.tensors import is_array

log = logging.getLogger(__name__)


class _Member:
    """One call of a batch."""

    def __init__(self, work: Work, call: Call, values: dict[str, Any]) -> None:
        self.numbered = Numbered(work)
        self.as_tensors = call.as_tensors
        self.values = values


class BatchedPythonEngine:
    """Runs `target` on up to `batch` calls together; see `PythonEngine` for the other words.

    It returns a list with one result for each call, in order. An item that is an exception fails its call alone; a list
    of another length, and what the code raises, fail all of the batch. A cancelled call's result is dropped.

    A batch that runs longer than `timeout_s` fails, and its code is told to stop. When it does not, `failed()` returns:
    there is one thread, and only a new process is rid of it.
    """

    def __init__(
        self,
        target: str | Callable[..., Any],
        batch: int = 8,
        weights: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"`batch` is {batch}; it must be at least 1")
        self._target = target
        self._batch = batch
        self._weights = weights
        self._timeout_s = timeout_s
        self._threads = Threads(1)
        self._failure = Failure()
        self._code: Code | None = None
        self._running: set[str] = set()
        self._cancelled: set[str] = set()

    async def start(self) -> EngineInfo:
        """Load the target. Raises EngineStartError when it is not there, fails, or yields items."""
        self._code = await load_code(self._target, self._weights, batched=True)
        return EngineInfo(batching="static", capacity={"slots": float(self._batch)}, facts=self._code.facts())

    def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """A static engine has none."""
        raise NotImplementedError("batches alone are run: see `run_batch`")

    async def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncIterator[Sequence[Chunk]]:
        """See `Engine`. All chunks of a group of calls come together."""
        assert self._code is not None, "`start` comes first"
        self._running = {work.id for work in works}
        try:
            groups: dict[frozenset[str], list[_Member]] = {}
            for work in works:
                found = self._code.values(work.payload)
                if not isinstance(found, Finish) and not found[1]:
                    found = Finish(reason="rejected", error="a function that runs batches takes at least one argument")
                if isinstance(found, Finish):
                    yield [Numbered(work).chunk(finish=found)]
                else:
                    groups.setdefault(frozenset(found[1]), []).append(_Member(work, *found))
            for members in groups.values():
                run = Run()
                running = asyncio.ensure_future(self._results(self._code, run, members))
                try:
                    async with asyncio.timeout(self._timeout_s):
                        chunks = await asyncio.shield(running)
                except TimeoutError:
                    log.warning(
                        "requests %s: %s",
                        ", ".join(each.numbered.work.id for each in members),
                        too_late(self._timeout_s),
                    )
                    late = Finish(reason="error", error=too_late(self._timeout_s))
                    yield [member.numbered.chunk(finish=late) for member in members]
                    await self._told_to_stop(run, running)
                except BaseException:
                    await self._told_to_stop(run, running)
                    raise
                else:
                    yield chunks
        finally:
            self._running = set()
            self._cancelled.clear()

    async def _results(self, code: Code, run: Run, members: Sequence[_Member]) -> list[Chunk]:
        """Run them together. Every member's chunks, its finish with them."""
        names = list(members[0].values)
        together = {name: [member.values[name] for member in members] for name in names}
        began = clock.precise()
        found = await self._called(code, run, together)
        made = _each(found, len(members))
        if isinstance(made, Raised):
            log.error("a batch of %d calls failed", len(members), exc_info=made.error)
        seconds = clock.precise() - began
        usage = {"items": 1.0, "seconds": seconds, "batch": float(len(members))}
        return [
            chunk
            for n, member in enumerate(members)
            for chunk in self._ended(member, made if isinstance(made, Raised) else made[n], usage, len(members))
        ]

    async def _called(self, code: Code, run: Run, together: dict[str, list[Any]]) -> Any:
        if code.is_async:
            try:
                return await code.call(**together)
            except BaseException as error:  # an exit, too, is the end of this batch alone
                return Raised(error)
        if getattr(asyncio.get_running_loop(), "virtual", False):
            return await clock.offload(lambda: run(lambda: code.call(**together)))
        return await asyncio.wrap_future(self._threads.submit(run, lambda: code.call(**together), lambda: None))

    def _ended(self, member: _Member, result: Any, usage: dict[str, float], together: int) -> list[Chunk]:
        numbered = member.numbered
        if numbered.work.id in self._cancelled:
            return [numbered.chunk(finish=Finish(reason="cancelled"))]
        result = Raised(result) if isinstance(result, BaseException) else result
        result = sent(result, as_tensors=member.as_tensors)
        if not isinstance(result, Raised):
            return [numbered.chunk(result), numbered.chunk(finish=Finish(reason="stop", usage=usage))]
        # With fewer beside it there may be enough memory: it is run again if that does no harm.
        detail = {"retry": "memory"} if isinstance(result.error, MemoryError) and together > 1 else None
        return [numbered.chunk(finish=Finish(reason="error", error=result.words, detail=detail))]

    async def _told_to_stop(self, run: Run, running: asyncio.Future[list[Chunk]]) -> None:
        """A batch that nobody waits for any more. The engine has failed when its code does not heed it."""
        if self._code is not None and self._code.is_async:
            running.cancel()
        run.stop()
        await asyncio.wait({running}, timeout=STOP_S)
        if not running.done():
            self._failure.say("a batch did not end when it was told to")

    async def failed(self) -> str:
        """See `Engine`."""
        return await self._failure.said()

    async def cancel(self, request_id: str) -> None:
        """See `Engine`. The batch runs on for the others."""
        if request_id in self._running:
            self._cancelled.add(request_id)

    async def load(self) -> EngineLoad:
        """See `Engine`."""
        return EngineLoad(running=len(self._running), waiting=0)

    async def close(self) -> None:
        """A thread that does not end is left to the end of the process."""
        self._threads.close()


def _each(found: Any, count: int) -> Any:
    """The results, one for each call, or a `Raised` for all of them."""
    if isinstance(found, Raised):
        return found
    if not isinstance(found, (list, tuple)) and not (is_array(found) and found.ndim):
        words = f"it must return a list with a result for each of the {count} calls, not {type(found).__name__}"
        return Raised(TypeError(words))
    if len(found) != count:
        return Raised(ValueError(f"it returned {len(found)} results for {count} calls; it must be one for each"))
    return found
