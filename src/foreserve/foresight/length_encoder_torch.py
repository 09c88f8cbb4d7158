"""BERT in torch, from its weights alone: where OpenVINO is not installed. It runs with the threads that torch has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

if TYPE_CHECKING:
    from foreserve.foresight.length_encoder import Shape


class TorchNetwork:
    """Implements `Network`."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], shape: Shape) -> None:
        self._weights = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        self._shape = shape

    @torch.inference_mode()
    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.float32]) -> NDArray[np.float32]:
        weights, seen = self._weights, torch.from_numpy(mask)
        places = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = weights["embeddings.word_embeddings.weight"][torch.from_numpy(ids)] + places
        x = self._norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        hidden = ((seen - 1.0) * 1e4)[:, None, None]
        for index in range(self._shape.num_hidden_layers):
            x = self._layer(x, hidden, f"encoder.layer.{index}")
        mean = (x * seen[:, :, None]).sum(dim=1) / seen.sum(dim=1, keepdim=True)
        found: NDArray[np.float32] = functional.normalize(mean).numpy()
        return found

    def _layer(self, x: torch.Tensor, hidden: torch.Tensor, name: str) -> torch.Tensor:
        heads = self._shape.num_attention_heads
        query, key, value = (
            self._linear(x, f"{name}.attention.self.{part}").view(*x.shape[:2], heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        seen = functional.scaled_dot_product_attention(query, key, value, hidden).transpose(1, 2).flatten(2)
        x = self._norm(x + self._linear(seen, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = functional.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(x, (x.shape[-1],), weight, bias, self._shape.layer_norm_eps)
