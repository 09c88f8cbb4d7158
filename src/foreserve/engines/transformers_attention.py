"""A KV cache that grows in place and attention that reads it once: what a decoding step of a large batch costs most.

The library's own cache copies all keys and values at each step, and its attention reads them once for every query head
that shares them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "foreserve_shared_heads"
"""How the library knows this attention."""

GROWTH = 128
"""Tokens by which a cache grows, so that it is copied once in so many steps."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, with room for the next tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add these, [rows, heads, tokens, size]; all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self._length = self._length, self._length + key_states.shape[2]
        if self._kept is None or self._length > self._kept[0].shape[2]:
            self._kept = (self._grown(key_states, begin, 0), self._grown(value_states, begin, 1))
        for kept, states in zip(self._kept, (key_states, value_states), strict=True):
            kept[:, :, begin : self._length] = states
        self.keys, self.values = (kept[:, :, : self._length] for kept in self._kept)
        return self.keys, self.values

    def _grown(self, states: torch.Tensor, begin: int, index: int) -> torch.Tensor:
        rows, heads, _, size = states.shape
        grown = states.new_empty((rows, heads, self._length + GROWTH, size))
        if self._kept is not None:
            grown[:, :, :begin] = self._kept[index][:, :, :begin]
        return grown

    def get_seq_length(self, *args: Any) -> int:
        """Tokens held."""
        return self._length


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """As the library's. For one new token, heads that share keys are taken as so many queries of one head."""
    rows, heads, tokens, size = query.shape
    shared = heads // key.shape[1]
    mask_of_rows = attention_mask is None or attention_mask.shape[1] == 1
    if tokens != 1 or shared == 1 or not mask_of_rows:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    grouped = query.reshape(rows, key.shape[1], shared, size)
    mask = None if attention_mask is None else attention_mask.expand(rows, 1, shared, attention_mask.shape[-1])
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(rows, 1, heads, size), None


def prepare(model: Any) -> None:
    """Have `model` attend so, where it would use the library's scaled dot product attention."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def cache_for(model: Any) -> Any:
    """An empty cache for a batch. Layers of other kinds (sliding windows, states) are the library's own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
