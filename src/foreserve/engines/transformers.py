"""The reference and fallback for language models: Hugging Face transformers, a static batch at a time.

A batch costs its size times its longest output, whoever ends early: which requests run together is what matters here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foreserve import clock
from foreserve.core import Chunk, EngineInfo, EngineLoad, Finish, FinishReason, Work
from foreserve.engines.answer import Numbered, generate_of, refusal
from foreserve.engines.generation import Generate, Tokens
from foreserve.engines.sampling import RowSampler, left_padded, top_candidates
from foreserve.errors import EngineStartError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class _Row:
    """One request of a batch. Touched by the generating thread alone, but for `cancelled`."""

    def __init__(self, work: Work, payload: Generate) -> None:
        self.payload = payload
        self.numbered = Numbered(work)
        self.sampler = RowSampler(payload)
        self.stop_tokens = frozenset() if payload.ignore_eos else frozenset(payload.stop_tokens)
        self.output_tokens = 0
        self.done = False
        self.cancelled = False
        self.logprob = 0.0
        self.top: list[tuple[int, float]] = []

    def end(
        self, reason: FinishReason, tokens: Tokens | None = None, error: str | None = None, detail: Any = None
    ) -> Chunk:
        self.done = True
        usage = {"prompt_tokens": float(len(self.payload.prompt)), "output_tokens": float(self.output_tokens)}
        return self.numbered.chunk(tokens, Finish(reason=reason, error=error, usage=usage, detail=detail))

    def advance(self, token: int) -> Chunk:
        """Take the token that was chosen for this row; the chunk to send for it."""
        if self.cancelled:
            return self.end("cancelled")
        self.output_tokens += 1
        if token in self.stop_tokens:
            return self.end("stop")
        tokens = Tokens(
            ids=[token],
            logprobs=None if self.payload.logprobs is None else [self.logprob],
            top=[self.top] if self.payload.logprobs else None,
        )
        if self.output_tokens >= self.payload.max_tokens:
            return self.end("length", tokens)
        return self.numbered.chunk(tokens)


class _Batch:
    """A batch that is being generated in a thread, and the chunks that it has put out."""

    def __init__(self, rows: list[_Row], loop: asyncio.AbstractEventLoop) -> None:
        self.rows = rows
        self._loop = loop
        self.steps: asyncio.Queue[list[Chunk] | None] = asyncio.Queue()  # bounded by the longest `max_tokens`

    def publish(self, chunks: list[Chunk] | None) -> None:
        """From the thread to the loop; `None` is the end."""
        self._loop.call_soon_threadsafe(self.steps.put_nowait, chunks)

    def choose(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As a logits processor: leave `generate`, which is greedy, no choice but what each row's sampler chose."""
        import torch

        scores = scores.float()
        chosen = torch.full_like(scores, float("-inf"))
        for index, row in enumerate(self.rows):
            token = 0 if row.done else row.sampler.choose(scores[index])
            chosen[index, token] = 0.0
            if not row.done and row.payload.logprobs is not None:
                logprobs = torch.log_softmax(scores[index], dim=-1)
                row.logprob = float(logprobs[token])
                row.top = top_candidates(logprobs, row.payload.logprobs) if row.payload.logprobs else []
        return chosen

    def step(self, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """As a stopping criterion: put out what the step brought. Returns which rows are done."""
        import torch

        tokens = ids[:, -1].tolist()
        chunks = [row.advance(token) for row, token in zip(self.rows, tokens, strict=True) if not row.done]
        if chunks:
            self.publish(chunks)
        return torch.tensor([row.done for row in self.rows])


class TransformersEngine:
    """Static batches of any causal language model in a Hugging Face folder. Payload `Generate`, chunk data `Tokens`.

    `weights` is their precision: "bf16", "f16" or "f32". At most `max_running` rows make a batch. A row that has ended
    gets no more chunks, yet its place is computed to the batch's end. Running out of memory ends the batch's rows with
    `error`, to be tried again with fewer. A stop token is counted and not given out.
    """

    def __init__(
        self,
        *,
        model_path: str,
        threads: int | None = None,
        max_running: int = 8,
        weights: Literal["bf16", "f16", "f32"] = "bf16",
        context_tokens: int | None = None,
    ) -> None:
        if weights not in _DTYPES:
            raise ValueError(f"`weights` is {weights!r}; valid: {', '.join(_DTYPES)}")
        self._folder = Path(model_path).expanduser()
        self._threads = threads
        self._max_running = max_running
        self._weights = weights
        self._context_wanted = context_tokens
        self._context = 0
        self._vocabulary = 0
        self._model: Any = None
        self._batch: _Batch | None = None
        self._last_step_s: float | None = None
        # One thread: a batch begins when the one before has ended.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="generate")

    async def start(self) -> EngineInfo:
        """Load the model. Raises EngineStartError in words."""
        # Spinning threads halve the rate where cores are shared; it has to be said before torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            import torch
            from transformers import AutoModelForCausalLM, GenerationConfig
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise EngineStartError(f"{error}; install it with: pip install 'foreserve[torch]'") from error
        if not (self._folder / "config.json").is_file():
            raise EngineStartError(f"{self._folder} is no Hugging Face folder: it has no config.json")
        if self._threads:
            torch.set_num_threads(self._threads)
        transformers_logging.disable_progress_bar()
        dtype = getattr(torch, _DTYPES[self._weights])
        try:
            model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=dtype, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
            raise EngineStartError(f"transformers cannot load {self._folder}: {error}") from error
        model.eval()
        model.generation_config = GenerationConfig()  # what ends and shapes an answer comes with each request
        self._model = model
        config = model.config.get_text_config()
        limit = int(getattr(config, "max_position_embeddings", 0) or self._context_wanted or 2048)
        self._context = min(self._context_wanted or limit, limit)
        self._vocabulary = int(config.vocab_size)
        return EngineInfo(
            batching="static",
            capacity={"slots": float(self._max_running), "kv_tokens": float(self._max_running * self._context)},
            features=("logprobs", "top_logprobs", "penalties", "seed", "ignore_eos"),
            facts={"context_tokens": self._context, "weights": self._weights},
        )

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
        rows = [_Row(work, payload) for work, payload in payloads if work.id not in refusals]
        if not rows:
            return
        loop = asyncio.get_running_loop()
        batch = self._batch = _Batch(rows, loop)
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

    def _generate(self, batch: _Batch) -> None:
        """In the thread: run a batch to its end, or to the end of those that still want it."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        try:
            ids, mask = left_padded([row.payload.prompt for row in batch.rows], pad=0)
            longest = max(row.payload.max_tokens for row in batch.rows)
            config = GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=0)
            with torch.inference_mode():
                self._model.generate(
                    input_ids=ids, attention_mask=mask, generation_config=config,
                    logits_processor=LogitsProcessorList([batch.choose]),
                    stopping_criteria=StoppingCriteriaList([batch.step]),
                )  # fmt: skip
        except Exception as error:
            log.exception("a batch of %d failed", len(batch.rows))
            full = _out_of_memory(error)
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
        """See `Engine`. KV memory is not bounded by the engine, so its fraction is not known."""
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


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch says so on a CPU only by the words of a RuntimeError."""
    return isinstance(error, MemoryError) or "alloc" in str(error).lower() or "out of memory" in str(error).lower()
