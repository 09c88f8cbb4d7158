"""One static batch of the transformers engine: its rows, and the loop that decodes them together to the longest end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foreserve.core import Chunk, Finish, FinishReason, Work
from foreserve.engines.answer import Numbered
from foreserve.engines.generation import Generate, Tokens
from foreserve.engines.sampling import RowSampler, left_padded, top_candidates

if TYPE_CHECKING:
    import torch


class Row:
    """One request of a batch. Touched by the generating thread alone, but for `cancelled`."""

    def __init__(self, work: Work, payload: Generate, most: int | None = None) -> None:
        """`most` tokens end the answer where its own limit does not."""
        self.payload = payload
        self.numbered = Numbered(work)
        self.sampler = RowSampler(payload)
        self.stop_tokens = frozenset() if payload.ignore_eos else frozenset(payload.stop_tokens)
        self.most = payload.max_tokens if most is None else min(payload.max_tokens, max(1, most))
        self.output_tokens = 0
        self.done = False
        self.cancelled = False
        self._logprob = 0.0
        self._top: list[tuple[int, float]] = []

    @property
    def simple(self) -> bool:
        """Whether its next token is the likeliest and nothing else is asked of it."""
        return self.sampler.plain and self.payload.logprobs is None

    def end(
        self, reason: FinishReason, tokens: Tokens | None = None, error: str | None = None, detail: Any = None
    ) -> Chunk:
        self.done = True
        usage = {"prompt_tokens": float(len(self.payload.prompt)), "output_tokens": float(self.output_tokens)}
        return self.numbered.chunk(tokens, Finish(reason=reason, error=error, usage=usage, detail=detail))

    def choose(self, logits: torch.Tensor) -> int:
        """Its next token, from its float32 logits [vocabulary]."""
        import torch

        token = self.sampler.choose(logits)
        if self.payload.logprobs is not None:
            logprobs = torch.log_softmax(logits, dim=-1)
            self._logprob = float(logprobs[token])
            self._top = top_candidates(logprobs, self.payload.logprobs) if self.payload.logprobs else []
        return token

    def advance(self, token: int) -> Chunk:
        """Take the token that was chosen for this row; the chunk to send for it."""
        if self.cancelled:
            return self.end("cancelled")
        self.output_tokens += 1
        if token in self.stop_tokens:
            return self.end("stop")
        tokens = Tokens(
            ids=[token],
            logprobs=None if self.payload.logprobs is None else [self._logprob],
            top=[self._top] if self.payload.logprobs else None,
        )
        if self.output_tokens >= self.most:
            return self.end("length", tokens)
        return self.numbered.chunk(tokens)


class OutOfMemory(MemoryError):
    """The batch has outgrown the memory that it may have."""


class Batch:
    """A batch that is generated in a thread, and the chunks that it has put out.

    `kv_tokens` bounds `rows * (longest prompt + tokens)`.
    """

    def __init__(self, rows: Sequence[Row], kv_tokens: int, loop: asyncio.AbstractEventLoop) -> None:
        self.rows = rows
        self._loop = loop
        self._kv_tokens = kv_tokens
        self.steps: asyncio.Queue[list[Chunk] | None] = asyncio.Queue()  # bounded by the longest answer

    def publish(self, chunks: list[Chunk] | None) -> None:
        """From the thread to the loop; `None` is the end."""
        self._loop.call_soon_threadsafe(self.steps.put_nowait, chunks)

    def generate(self, model: Any) -> None:
        """Decode all rows until the last has ended or nobody wants one any more. Raises OutOfMemory.

        A row that has ended keeps its place: its tokens are computed and thrown away, as static batching does.
        """
        import torch

        from foreserve.engines.transformers_attention import cache_for

        ids, mask = left_padded([row.payload.prompt for row in self.rows], pad=0)
        prompt = ids.shape[1]
        steps = min(max(row.most for row in self.rows), self._kv_tokens // len(self.rows) - prompt)
        # One mask for all steps, of which each reads its part; a row's positions begin after its padding.
        mask = torch.cat([mask, torch.ones((len(self.rows), max(0, steps)), dtype=mask.dtype)], dim=1)
        ids, mask = ids.to(model.device), mask.to(model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = cache_for(model)
        begin, end = 0, prompt
        for _ in range(steps):
            out = model(
                input_ids=ids,
                attention_mask=mask[:, :end],
                position_ids=positions[:, begin:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            tokens = self._choose(out.logits[:, -1])
            if self._advance(tokens):
                return
            ids = torch.tensor(tokens, device=model.device).unsqueeze(1)
            begin, end = end, end + 1
        raise OutOfMemory(f"{len(self.rows)} rows hold no more than {self._kv_tokens} tokens")

    def _choose(self, logits: torch.Tensor) -> list[int]:
        """The next token of each row, from logits [rows, vocabulary]; of one that is done, whichever."""
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        for index, row in enumerate(self.rows):
            if not row.done and not row.simple:
                tokens[index] = row.choose(logits[index].float().cpu())
        return tokens

    def _advance(self, tokens: Sequence[int]) -> bool:
        """Put out what a step brought. True when every row is done."""
        chunks = [row.advance(token) for row, token in zip(self.rows, tokens, strict=True) if not row.done]
        if chunks:
            self.publish(chunks)
        return all(row.done for row in self.rows)
