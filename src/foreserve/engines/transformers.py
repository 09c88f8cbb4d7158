"""The reference and fallback for language models: Hugging Face transformers, a static batch at a time.

A batch costs its size times its longest output, whoever ends early: which requests run together is what matters here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from foreserve import clock
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, Work
from foreserve.devices import torch_name
from foreserve.engines.answer import Numbered, generate_of, refusal
from foreserve.engines.generation import Generate
from foreserve.engines.transformers_batch import Batch, OutOfMemory, Row
from foreserve.errors import EngineStartError

log = logging.getLogger(__name__)

IMPORTED_LATER = (
    "foreserve.engines.transformers_attention",
    "foreserve.engines.transformers_shared",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
)
"""What takes most of a start, for a process that does it before it is wanted."""

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class TransformersEngine:
    """Static batches of any causal language model in a Hugging Face folder. Payload `Generate`, chunk data `Tokens`.

    `weights` is their precision: "bf16", "f16" or "f32". At most `max_running` rows make a batch, which holds at most
    `kv_tokens`: its rows times the longest prompt and what was generated (without: a context for each row). A row that
    has ended gets no more chunks, yet its place is computed to the batch's end. Running out of memory ends the batch's
    rows with `error`, to be tried again with fewer. A plan `{"most_tokens": n}` bounds every answer of its
    batch. A stop token is counted and not given out.

    `shared_weights` names the declared weights that are the model's files. They are used where they lie; where they do
    not fit the model, it is loaded as ever and the log says why. The fact `weights_shared` tells which it was. On a
    `device` they are one copy for all workers there too.
    """

    def __init__(
        self,
        *,
        model_path: str,
        threads: int | None = None,
        max_running: int = 8,
        weights: Literal["bf16", "f16", "f32"] = "bf16",
        context_tokens: int | None = None,
        kv_tokens: int | None = None,
        device: str = "cpu",
        shared_weights: Sequence[str] = (),
    ) -> None:
        if weights not in _DTYPES:
            raise ValueError(f"`weights` is {weights!r}; valid: {', '.join(_DTYPES)}")
        if kv_tokens is not None and kv_tokens < 2:
            raise ValueError(f"`kv_tokens` is {kv_tokens}; it must be at least 2")
        self._folder = Path(model_path).expanduser()
        self._threads = threads
        self._max_running = max_running
        self._weights = weights
        self._context_wanted = context_tokens
        self._kv_wanted = kv_tokens
        self._device = torch_name(device)
        self._shared_weights = shared_weights
        self._kv_tokens = 0
        self._context = 0
        self._vocabulary = 0
        self._model: Any = None
        self._batch: Batch | None = None
        self._last_step_s: float | None = None
        # One thread: a batch begins when the one before has ended.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def start(self) -> EngineInfo:
        """Load the model. Raises EngineStartError in words."""
        # Spinning threads halve the rate where cores are shared; it has to be said before torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            import torch
            from transformers import GenerationConfig
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise EngineStartError(f"{error}; install it with: pip install 'foreserve[torch]'") from error
        if not (self._folder / "config.json").is_file():
            raise EngineStartError(f"{self._folder} is no Hugging Face folder: it has no config.json")
        if self._threads:
            torch.set_num_threads(self._threads)
        if self._device != "cpu" and not torch.cuda.is_available():
            raise EngineStartError(f"`device` is {self._device!r}, and torch {torch.__version__} sees no GPU")
        transformers_logging.disable_progress_bar()
        model = self._shared()
        weights_shared = model is not None and self._in_one_copy()
        if model is None:
            model = self._loaded()
        model.eval()
        from foreserve.engines.transformers_attention import prepare

        prepare(model)
        model.generation_config = GenerationConfig()  # what ends and shapes an answer comes with each request
        self._model = model
        config = model.config.get_text_config()
        limit = int(getattr(config, "max_position_embeddings", 0) or self._context_wanted or 2048)
        self._context = min(self._context_wanted or limit, limit, self._kv_wanted or limit)
        self._kv_tokens = self._kv_wanted or self._max_running * self._context
        self._vocabulary = int(config.vocab_size)
        return EngineInfo(
            batching="static",
            capacity={"slots": float(self._max_running), "kv_tokens": float(self._kv_tokens)},
            features=("logprobs", "top_logprobs", "penalties", "seed", "ignore_eos", "resume"),
            facts={"context_tokens": self._context, "weights": self._weights, "weights_shared": weights_shared},
        )

    def _shared(self) -> Any:
        """The model over the weights of the machine, or `None`."""
        if not self._shared_weights:
            log.info("%s is loaded for this process alone: no file of it was declared as shared", self._folder)
            return None
        try:
            from foreserve.engines.transformers_shared import shared

            return shared(self._folder, self._dtype(), self._shared_weights)
        except Exception as error:  # of whatever kind: what is really wrong is told by the library's own loading
            words = str(error) if isinstance(error, EngineStartError) else f"{type(error).__name__}: {error}"
            log.warning("%s is loaded for this process alone, its shared files do not serve: %s", self._folder, words)
            return None

    def _loaded(self) -> Any:
        """The model as the library loads it, for this process."""
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=self._dtype(), local_files_only=True)
            return model.to(self._device)
        except (OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
            raise EngineStartError(f"transformers cannot load {self._folder}: {error}") from error

    def _in_one_copy(self) -> bool:
        from foreserve.engines.weights import Weights
        from foreserve.runtime import leases

        return all(Weights(leases.get(name)).shared for name in self._shared_weights)

    def _dtype(self) -> Any:
        import torch

        return getattr(torch, _DTYPES[self._weights])

    async def run(self, work: Work, plan: Any = None) -> AsyncIterator[Chunk]:
        """A batch of one."""
        async with aclosing(self.run_batch([work], plan)) as steps:
            async for chunks in steps:
                for chunk in chunks:
                    yield chunk

    async def run_batch(self, works: Sequence[Work], plan: Any = None) -> AsyncGenerator[Sequence[Chunk]]:
        """See `Engine`. Each turn gives the chunks of one decoding step."""
        payloads = [(work, generate_of(work)) for work in works]
        refusals = {work.id: words for work, payload in payloads if (words := self._refusal(payload))}
        if len(works) - len(refusals) > self._max_running:
            refusals = {work.id: f"a batch holds at most {self._max_running} requests" for work in works}
        if refusals:
            yield [
                Numbered(work).chunk(finish=Finish(reason="rejected", error=refusals[work.id]))
                for work in works
                if work.id in refusals
            ]
        rows = [Row(work, payload, _most(plan)) for work, payload in payloads if work.id not in refusals]
        if not rows:
            return
        loop = asyncio.get_running_loop()
        batch = self._batch = Batch(rows, self._kv_tokens, loop)
        generating = loop.run_in_executor(self._pool, self._generate, batch)
        try:
            began = clock.precise()
            while (chunks := await batch.steps.get()) is not None:
                self._last_step_s = clock.precise() - began
                yield chunks
                began = clock.precise()
            await generating
        finally:
            for row in rows:
                row.cancelled = True
            if self._batch is batch:
                self._batch = None

    def _refusal(self, payload: Generate) -> str | None:
        if words := refusal(payload, self._context, self._vocabulary):
            return words
        if payload.json_schema is not None:
            return "the engine cannot hold an answer to a JSON schema"
        if payload.logprobs is not None and payload.logprobs > self._vocabulary:
            return f"`logprobs` is {payload.logprobs}; the vocabulary has {self._vocabulary} tokens"
        return None

    def _generate(self, batch: Batch) -> None:
        """In the thread: run a batch to its end, or to the end of those that still want it."""
        import torch

        try:
            with torch.inference_mode():
                batch.generate(self._model)
        except Exception as error:
            full = _out_of_memory(error)
            if isinstance(error, OutOfMemory):
                log.info("a batch ran out of memory: %s", error)
            else:
                log.exception("a batch of %d failed", len(batch.rows))
            words = "out of memory" if full else f"{type(error).__name__}: {error}"[:300]
            # With fewer beside it a row may fit; one that was alone never will.
            detail = {"retry": "memory"} if full and len(batch.rows) > 1 else None
            batch.publish([row.end("error", error=words, detail=detail) for row in batch.rows if not row.done])
            gc.collect()
        finally:
            batch.publish(None)

    async def cancel(self, request_id: str) -> None:
        """See `Engine`."""
        for row in self._batch.rows if self._batch is not None else ():
            if row.numbered.work.id == request_id:
                row.cancelled = True

    async def load(self) -> EngineLoad:
        """See `Engine`. What a batch holds of the KV memory at a moment is not told."""
        batch = self._batch
        live = sum(1 for row in batch.rows if not row.done) if batch is not None else 0
        return EngineLoad(running=live, waiting=0, last_step_s=self._last_step_s)

    async def close(self) -> None:
        """Cancel what runs and free the memory."""
        for row in self._batch.rows if self._batch is not None else ():
            row.cancelled = True
        await asyncio.get_running_loop().run_in_executor(self._pool, gc.collect)
        self._pool.shutdown()
        self._model = None


def _most(plan: Any) -> int | None:
    """The most tokens of an answer, as the plan says."""
    return int(plan["most_tokens"]) if isinstance(plan, Mapping) and "most_tokens" in plan else None


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch says so on a CPU only by the words of a RuntimeError."""
    return isinstance(error, MemoryError) or "alloc" in str(error).lower() or "out of memory" in str(error).lower()
