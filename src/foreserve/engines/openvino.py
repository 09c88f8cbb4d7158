"""The embedded default for language models: OpenVINO GenAI's continuous batching, stepped by us.

`step()` holds the interpreter's lock for its whole length, so this engine belongs in a process of its own, whose event
loop it blocks for one step at a time. A step is bounded by `max_batched_tokens`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from foreserve import clock
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.engines.answer import Numbered, generate_of, refusal
from foreserve.engines.failure import Failure
from foreserve.engines.generation import Generate
from foreserve.engines.openvino_prepare import EXACT, LIBRARY_ERRORS, Facts, prepared, require
from foreserve.engines.openvino_request import OpenVINORequest, config_of, in_words
from foreserve.engines.openvino_schema import SchemaCheck
from foreserve.errors import EngineStartError
from foreserve.ports import Sink

log = logging.getLogger(__name__)

IMPORTED_LATER = ("numpy", "openvino", "openvino.passes", "openvino_genai", "openvino_tokenizers")
"""For a process that imports before it is wanted."""

_BLOCK_TOKENS = 32
"""Tokens in one block of the CPU's KV cache, the unit in which it is given out."""

_TURNS = 6
"""Turns of the loop between two steps: a message needs several to come in and be added, a chunk to be sent."""


class OpenVINOEngine:
    """Continuous batching on the CPU. Payload `Generate`, chunk data `Tokens`.

    `model_path` is an f16 or Q8_0 GGUF file or a folder of OpenVINO's; a file is turned into a folder once, in
    `cache_dir` or beside it. `kv_cache_gb` (GiB) is taken at the start. `exact` makes a request's answer independent of
    who else is in the batch, at about half the speed. With a JSON schema `ignore_eos` has no effect. A stop token is
    counted and not given out. `context_tokens` is at most what the model and the whole KV cache hold.

    When its pipeline cannot be built again, or its step loop ends on an error, everything it runs ends with `error` and
    `failed()` returns: its process is then to be started anew.
    """

    def __init__(
        self,
        *,
        model_path: str,
        threads: int | None = None,
        max_running: int = 16,
        max_batched_tokens: int = 512,
        kv_cache_gb: float = 1.0,
        prefix_caching: bool = True,
        exact: bool = False,
        context_tokens: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self._model = Path(model_path).expanduser()
        self._cache = Path(cache_dir).expanduser() / f"{self._model.stem}.openvino" if cache_dir else None
        self._threads = threads
        self._max_running = max_running
        self._max_batched_tokens = max_batched_tokens
        self._kv_cache_gb = kv_cache_gb
        self._prefix_caching = prefix_caching
        self._exact = exact
        self._context_wanted = context_tokens
        self._context = 0
        self._folder = Path()
        self._facts = Facts(context_tokens=0, vocab_size=0, weights="")
        self._genai: Any = None
        self._ov: Any = None
        self._numpy: Any = None
        self._pipeline: Any = None
        self._running: dict[str, OpenVINORequest] = {}
        self._failure = Failure()
        self._schemas = SchemaCheck()
        self._next_id = 0
        self._pump_task: asyncio.Task[None] | None = None
        self._sink: Sink | None = None
        self._last_step_s: float | None = None

    # --- start

    async def start(self) -> EngineInfo:
        """Prepare the model if that was never done, build the pipeline, run it once."""
        self._genai, self._ov, self._numpy = require("openvino_genai"), require("openvino"), require("numpy")
        self._folder, self._facts = prepared(self._model, self._cache)
        try:
            self._pipeline = self._build()
            kv_tokens = self._warm_up()
        except LIBRARY_ERRORS as error:
            raise EngineStartError(f"OpenVINO cannot load {self._folder.name}: {error}") from error
        return self._info(kv_tokens)

    def _info(self, kv_tokens: int) -> EngineInfo:
        facts = self._facts
        self._context = min(self._context_wanted or facts.context_tokens, facts.context_tokens, kv_tokens)
        return EngineInfo(
            batching="continuous",
            capacity={"slots": float(self._max_running), "kv_tokens": float(kv_tokens)},
            features=("logprobs", "json_schema", "penalties", "seed", "ignore_eos"),
            facts={
                "context_tokens": self._context,
                "weights": facts.weights,
                "max_batched_tokens": self._max_batched_tokens,
                "block_tokens": _BLOCK_TOKENS,
                "prefix_caching": self._prefix_caching,
                "exact": self._exact,
            },
        )

    def _build(self) -> Any:
        scheduler = self._genai.SchedulerConfig()
        block_bytes = self._facts.kv_block_bytes_exact if self._exact else self._facts.kv_block_bytes
        if block_bytes:
            scheduler.num_kv_blocks = max(1, int(self._kv_cache_gb * 2**30) // block_bytes)
        else:
            scheduler.cache_size = max(1, round(self._kv_cache_gb))  # whole GiB are all that it takes
        scheduler.max_num_seqs = self._max_running
        scheduler.max_num_batched_tokens = self._max_batched_tokens
        scheduler.enable_prefix_caching = self._prefix_caching
        # Pinned threads stay on the cores that the process began on: replicas side by side would all crowd onto the
        # first ones, and a container's cores may change.
        properties: dict[str, Any] = {"ENABLE_CPU_PINNING": False}
        if self._threads:
            properties["INFERENCE_NUM_THREADS"] = self._threads
        if self._exact:
            properties |= EXACT
        return self._genai.ContinuousBatchingPipeline(str(self._folder), scheduler, "CPU", properties)

    def _warm_up(self) -> int:
        """Two tokens of an answer, so that no request pays for what is set up late. Returns how many tokens KV holds.

        The pipeline does not tell its number of blocks, but one token takes one block and usage is told in percent.
        """
        # Named because a request whose handle is dropped is dropped too.
        warm_up = OpenVINORequest(
            Work(id="warm-up", payload=None, cost={}, arrival=0.0),
            Generate(prompt=[0], max_tokens=2, temperature=0.0, ignore_eos=True),
        )
        self._add_to_pipeline(warm_up)
        self._pipeline.step()
        blocks: int = round(100.0 / self._pipeline.get_metrics().cache_usage)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return blocks * _BLOCK_TOKENS

    # --- requests

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """See `Engine`."""
        running = OpenVINORequest(work, generate_of(work), quiet=self._sink is not None and work.credits is None)
        if refused := self._refusal(running.payload):
            yield Numbered(work).chunk(finish=refused)
            return
        try:
            self._add_to_pipeline(running)
        except LIBRARY_ERRORS as error:
            yield Numbered(work).chunk(finish=Finish(reason="rejected", error=in_words(error)))
            return
        self._running[work.id] = running
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.get_running_loop().create_task(self._pump())
            self._pump_task.add_done_callback(self._pump_ended)
        try:
            async for chunk in running.answer.chunks():
                yield chunk
        finally:
            self._cancel(running)
            if self._running.get(work.id) is running:
                del self._running[work.id]

    def hand_over(self, sink: Sink) -> None:
        """See `Engine`. A turn of the loop for each request after each step took 4 % of a small model's time."""
        self._sink = sink

    def _refusal(self, payload: Generate) -> Finish | None:
        """What the pipeline would not notice, or would notice in the middle of others' work."""
        if self._failure.reason is not None:
            return Finish(reason="error", error=f"the engine has failed: {self._failure.reason}")
        if words := refusal(payload, self._context, self._facts.vocab_size):
            return Finish(reason="rejected", error=words)
        if payload.json_schema is not None and (words := self._schemas.refusal(payload.json_schema)):
            return Finish(reason="rejected", error=words)
        if payload.logprobs:
            return Finish(reason="rejected", error="the engine has the chosen token's log-probability, no rivals'")
        if self._live() >= self._max_running:
            return Finish(reason="error", error=f"the engine runs {self._max_running} requests already")
        return None

    def _add_to_pipeline(self, running: OpenVINORequest) -> None:
        """Add what is left of a request: all of it, or what comes after the tokens it has given out."""
        ids = [*running.payload.prompt, *running.ids]
        tensor = self._ov.Tensor(self._numpy.array([ids], dtype=self._numpy.int64))
        self._next_id += 1
        config = config_of(self._genai, running.payload, running.payload.max_tokens - len(running.ids))
        running.handle = self._pipeline.add_request(self._next_id, tensor, config)

    async def cancel(self, request_id: str) -> None:
        """See `Engine`. The pipeline drops it at its next step."""
        if running := self._running.get(request_id):
            self._cancel(running)

    def _cancel(self, running: OpenVINORequest) -> None:
        if not running.answer.ended:
            running.handle.cancel()
            running.end("cancelled")

    # --- the step loop

    async def _pump(self) -> None:
        """Step while anything is unfinished; between steps, let commands in and chunks out."""
        while self._failure.reason is None and self._pipeline.has_non_finished_requests():
            began = clock.precise()
            try:
                self._pipeline.step()
            except LIBRARY_ERRORS as error:
                self._recover(error)
            self._last_step_s = clock.precise() - began
            sink = self._sink if self._sink is not None and self._sink.open else None
            for running in self._running.values():
                if not running.answer.ended:
                    self._collect(running)
                    if sink is not None and running.answer.quiet and (chunk := running.answer.take()) is not None:
                        sink.put(chunk)
            for _ in range(_TURNS):
                await asyncio.sleep(0)

    def _pump_ended(self, pump: asyncio.Task[None]) -> None:
        """Nothing steps any more; unless all was done, whoever still runs would wait for ever."""
        if pump.cancelled():
            if self._live():
                self._fail("its step loop was cancelled")
        elif error := pump.exception():
            log.error("the step loop ended", exc_info=error)
            self._fail(f"its step loop ended: {type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        """End all that runs, then have the process started anew."""
        for running in self._running.values():
            running.end("error", f"the engine has failed: {reason}")
        self._failure.say(reason)

    def _collect(self, running: OpenVINORequest) -> None:
        """Give out what the last step made of one request, and its end."""
        reasons, statuses = self._genai.GenerationFinishReason, self._genai.GenerationStatus
        reason = reasons.NONE
        while running.handle.can_read():
            for output in running.handle.read().values():
                reason = output.finish_reason
                running.give_out(output, reason == reasons.STOP)
        status = running.handle.get_status()
        if reason in (reasons.STOP, reasons.LENGTH):
            running.end("stop" if reason == reasons.STOP else "length")
        elif status == statuses.IGNORED:
            running.end("error" if running.ids else "rejected", "the KV cache is exhausted")
        elif status != statuses.RUNNING:
            running.end("error", f"the pipeline ended the request with status {status.name}")

    def _recover(self, error: Exception) -> None:
        """A failed step leaves the pipeline unusable for everybody, so it is built again and who can goes on.

        What makes a step fail is a JSON schema that cannot be compiled, found out only there: those that had not begun
        are rejected. Others that have a schema have lost their place in it. The rest go on from what they have given
        out; their draws after that are no longer those of their seed.
        """
        log.warning("a step failed; building the pipeline again: %s", in_words(error))
        live = [running for running in self._running.values() if not running.answer.ended]
        suspects = [running for running in live if running.payload.json_schema is not None and not running.stepped]
        if len(suspects) == 1:
            self._schemas.remember(suspects[0].payload.json_schema or "", f"`json_schema`: {in_words(error)}")
        for running in live:
            running.handle = None
            if running in suspects:
                running.end("rejected", f"`json_schema` cannot be used: {in_words(error)}")
            elif not suspects or running.payload.json_schema is not None:
                running.end("error", f"the engine failed: {in_words(error)}")
        self._pipeline = None  # frees its memory before the new one takes its own
        try:
            self._pipeline = self._build()
        except LIBRARY_ERRORS as again:
            self._fail(f"its pipeline could not be built again: {in_words(again)}")
            return
        for running in live:
            if not running.answer.ended:
                try:
                    self._add_to_pipeline(running)
                except LIBRARY_ERRORS as again:
                    running.end("error", f"the engine could not go on with it: {in_words(again)}")

    # --- the rest of the protocol

    async def failed(self) -> str:
        """See `Engine`."""
        return await self._failure.said()

    def _live(self) -> int:
        return sum(not running.answer.ended for running in self._running.values())

    async def load(self) -> EngineLoad:
        """See `Engine`."""
        live = self._live()
        usage = self._pipeline.get_metrics().cache_usage / 100.0 if live and self._pipeline is not None else 0.0
        return EngineLoad(running=live, waiting=0, kv_fraction=usage, last_step_s=self._last_step_s)

    async def close(self) -> None:
        """End what runs as cancelled and free the memory."""
        for running in self._running.values():
            self._cancel(running)
        if self._pump_task is not None:
            await asyncio.gather(self._pump_task, return_exceptions=True)
        self._pipeline = None
