"""BERT as an OpenVINO graph, made from its weights, on one thread: in half precision where the processor has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

if TYPE_CHECKING:
    from foreserve.foresight.length_encoder import Shape

Weights = Mapping[str, NDArray[np.float32]]


class OpenVINONetwork:
    """Implements `Network`."""

    def __init__(self, weights: Weights, shape: Shape) -> None:
        ids = ops.parameter([-1, -1], np.int64, name="ids")
        mask = ops.parameter([-1, -1], np.float32, name="mask")
        result = _meaning(_Graph(weights, shape), ids, mask)
        model = openvino.Model([result], [ids, mask])
        options = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        self._request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._request.infer([ids, mask])[0]
        return found


class _Graph:
    """Layers over named weights."""

    def __init__(self, weights: Weights, shape: Shape) -> None:
        self.weights, self.shape = weights, shape

    def linear(self, x: Any, name: str) -> Any:
        weight = ops.constant(self.weights[f"{name}.weight"])
        bias = ops.constant(self.weights[f"{name}.bias"][None, None])
        return ops.add(ops.matmul(x, weight, False, True), bias)

    def norm(self, x: Any, name: str) -> Any:
        centred = ops.mvn(x, ops.constant(np.array([2], np.int64)), True, self.shape.layer_norm_eps, "inside_sqrt")
        scaled = ops.multiply(centred, ops.constant(self.weights[f"{name}.weight"][None, None]))
        return ops.add(scaled, ops.constant(self.weights[f"{name}.bias"][None, None]))

    def heads(self, x: Any) -> Any:
        """(texts, tokens, hidden) -> (texts, heads, tokens, a head's)."""
        heads = self.shape.num_attention_heads
        split = ops.constant(np.array([0, 0, heads, self.shape.hidden_size // heads], np.int64))
        return ops.transpose(ops.reshape(x, split, True), ops.constant(np.array([0, 2, 1, 3], np.int64)))

    def layer(self, x: Any, mask: Any, name: str) -> Any:
        query, key, value = (self.heads(self.linear(x, f"{name}.attention.self.{part}")) for part in _PARTS)
        seen = ops.scaled_dot_product_attention(query, key, value, mask)
        joined = ops.transpose(seen, ops.constant(np.array([0, 2, 1, 3], np.int64)))
        joined = ops.reshape(joined, ops.constant(np.array([0, 0, self.shape.hidden_size], np.int64)), True)
        attended = ops.add(x, self.linear(joined, f"{name}.attention.output.dense"))
        x = self.norm(attended, f"{name}.attention.output.LayerNorm")
        inner = ops.gelu(self.linear(x, f"{name}.intermediate.dense"), "erf")
        return self.norm(ops.add(x, self.linear(inner, f"{name}.output.dense")), f"{name}.output.LayerNorm")


_PARTS = ("query", "key", "value")


def _meaning(graph: _Graph, ids: Any, mask: Any) -> Any:
    zero = ops.constant(np.array(0, np.int64))
    one = ops.constant(np.array(1, np.int64))
    words = ops.gather(ops.constant(graph.weights["embeddings.word_embeddings.weight"]), ids, zero)
    # A text is one segment: its type's vector is the same at every place.
    places = graph.weights["embeddings.position_embeddings.weight"] + graph.weights[_TYPES][0]
    count = ops.gather(ops.shape_of(ids), one, zero)
    places = ops.gather(ops.constant(places), ops.range(zero, count, one, "i64"), zero)
    x = graph.norm(ops.add(words, places), "embeddings.LayerNorm")
    hidden = ops.multiply(ops.subtract(mask, ops.constant(np.float32(1.0))), ops.constant(np.float32(1e4)))
    hidden = ops.unsqueeze(hidden, ops.constant(np.array([1, 2], np.int64)))
    for index in range(graph.shape.num_hidden_layers):
        x = graph.layer(x, hidden, f"encoder.layer.{index}")
    weighed = ops.multiply(x, ops.unsqueeze(mask, ops.constant(np.array([2], np.int64))))
    along = ops.constant(np.array([1], np.int64))
    mean = ops.divide(ops.reduce_sum(weighed, along), ops.reduce_sum(mask, along, keep_dims=True))
    return ops.normalize_l2(mean, along, 1e-12, "max")


_TYPES = "embeddings.token_type_embeddings.weight"
