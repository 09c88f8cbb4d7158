"""Choosing the next token of every row of a batch, each row by its own parameters and its own random numbers."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foreserve.engines.generation import Generate

if TYPE_CHECKING:
    import torch


class RowSampler:
    """Draws for one row. A seeded row draws the same numbers in whatever batch it is.

    Where an answer goes on, so do its draws and its penalties: the tokens it has (`continued`) count as drawn here.
    """

    def __init__(self, payload: Generate) -> None:
        import torch

        self.payload = payload
        self.greedy = payload.temperature <= 0
        self._penalised = bool(payload.frequency_penalty or payload.presence_penalty)
        given = payload.prompt[-payload.continued :] if payload.continued else ()
        self._generated: dict[int, int] = Counter(given)
        self._skip = 0 if payload.seed is None else payload.continued
        """Draws that were made before."""
        self._generator = torch.Generator()
        if not self.greedy:
            self._generator.manual_seed(secrets.randbits(63) if payload.seed is None else payload.seed % 2**63)

    @property
    def plain(self) -> bool:
        """Whether the next token is always the likeliest one."""
        return self.greedy and not self._penalised

    def choose(self, logits: torch.Tensor) -> int:
        """The next token, from this row's float32 logits [vocabulary], which are not changed."""
        payload = self.payload
        if self._penalised and self._generated:
            logits = self._with_penalties(logits)
        token = int(logits.argmax()) if self.greedy else self._draw(logits / payload.temperature)
        if self._penalised:
            self._generated[token] = self._generated.get(token, 0) + 1
        return token

    def _with_penalties(self, logits: torch.Tensor) -> torch.Tensor:
        """OpenAI's formula: logit - count * frequency_penalty - (count > 0) * presence_penalty."""
        import torch

        ids = torch.tensor(list(self._generated))
        counts = torch.tensor(list(self._generated.values()), dtype=logits.dtype)
        logits = logits.clone()
        logits[ids] -= counts * self.payload.frequency_penalty + self.payload.presence_penalty
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        """One draw from the smallest set of tokens whose probability reaches `top_p`."""
        import torch

        probabilities = torch.softmax(logits, dim=-1)
        while self._skip:
            # One draw takes as many random numbers as there are tokens, whatever their probabilities.
            torch.multinomial(torch.ones_like(probabilities), 1, generator=self._generator)
            self._skip -= 1
        if self.payload.top_p >= 1.0:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        ordered, ids = probabilities.sort(descending=True)
        # What comes before a token, without it: the likeliest one is always kept.
        before = ordered.cumsum(-1) - ordered
        kept = ordered.masked_fill(before >= self.payload.top_p, 0.0)
        return int(ids[torch.multinomial(kept, 1, generator=self._generator)])


def top_candidates(logprobs: torch.Tensor, n: int) -> list[tuple[int, float]]:
    """The `n` likeliest tokens of one row with their log-probabilities, best first."""
    values, ids = logprobs.topk(n)
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [rows, longest], each prompt at its row's end."""
    import torch

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
