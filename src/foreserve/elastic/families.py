"""How the layers of a Hugging Face encoder are walked, by the kind of model.

The modules and weights are the model's own. What is ours is the order of calls, so that tokens can be merged between a
layer's two parts and attention can be told how many tokens each stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Family(Protocol):
    """One kind of model. `layer` is one of `layers(model)`."""

    text: bool
    """Whether it reads padded rows of token ids, the class token first and a separator last; else images."""

    def layers(self, model: nn.Module) -> nn.ModuleList: ...
    def embed(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The tokens `[B, N, D]` that the first layer takes."""
        ...

    def fixed(self, model: nn.Module) -> int:
        """How many tokens at the front of an image's are not of its patches."""
        ...

    def attend(self, layer: Any, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first part: tokens after attention, and their keys `[B, N, heads * size]`.

        `bias`, `[B, 1, 1, N]`, is added to what attention gives each token before the softmax.
        """
        ...

    def feed(self, layer: Any, tokens: Tensor) -> Tensor:
        """The second part."""
        ...

    def finish(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """What comes after the last layer."""
        ...


def attention(
    tokens: Tensor,
    query: Callable[[Tensor], Tensor],
    key: Callable[[Tensor], Tensor],
    value: Callable[[Tensor], Tensor],
    heads: int,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Fused attention: what was attended to `[B, N, width]`, and the keys as averaged over heads `[B, N, size]`."""
    batch, length = tokens.shape[:2]
    q, k, v = (part(tokens).view(batch, length, heads, -1) for part in (query, key, value))
    if bias is not None:
        bias = bias.to(q.dtype).expand(-1, -1, length, -1)
    out = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return out.transpose(1, 2).reshape(batch, length, -1), k.mean(dim=2)


def _tensor(found: Any) -> Tensor:
    """What a module of no known type returned."""
    return cast(Tensor, found)


class _VisionTransformer:
    """ViT and DeiT: norms come first in each part."""

    text = False

    def layers(self, model: Any) -> Any:
        return model.layers

    def fixed(self, model: Any) -> int:
        return int(model.embeddings.position_embeddings.shape[1] - model.embeddings.patch_embeddings.num_patches)

    def embed(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        weight = model.embeddings.patch_embeddings.projection.weight
        return _tensor(model.embeddings(inputs["pixel_values"].to(weight.dtype)))

    def attend(self, layer: Any, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        own = layer.attention
        out, keys = attention(
            layer.layernorm_before(tokens), own.q_proj, own.k_proj, own.v_proj, own.num_attention_heads, bias
        )
        return own.o_proj(out) + tokens, keys

    def feed(self, layer: Any, tokens: Tensor) -> Tensor:
        return _tensor(layer.mlp(layer.layernorm_after(tokens))) + tokens

    def finish(self, model: Any, tokens: Tensor) -> Tensor:
        return _tensor(model.layernorm(tokens))


class _Bert:
    """BERT, RoBERTa and their kin: norms come last in each part."""

    text = True

    def layers(self, model: Any) -> Any:
        return model.encoder.layer

    def fixed(self, model: Any) -> int:
        return 1

    def embed(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return _tensor(model.embeddings(input_ids=inputs["input_ids"], token_type_ids=inputs.get("token_type_ids")))

    def attend(self, layer: Any, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        own = layer.attention.self
        out, keys = attention(tokens, own.query, own.key, own.value, own.num_attention_heads, bias)
        return layer.attention.output(out, tokens), keys

    def feed(self, layer: Any, tokens: Tensor) -> Tensor:
        return _tensor(layer.feed_forward_chunk(tokens))

    def finish(self, model: Any, tokens: Tensor) -> Tensor:
        return tokens


class _DistilBert(_Bert):
    """The same under other names."""

    def layers(self, model: Any) -> Any:
        return model.transformer.layer

    def embed(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        return _tensor(model.embeddings(inputs["input_ids"]))

    def attend(self, layer: Any, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        own = layer.attention
        out, keys = attention(tokens, own.q_lin, own.k_lin, own.v_lin, own.n_heads, bias)
        return layer.sa_layer_norm(own.out_lin(out) + tokens), keys

    def feed(self, layer: Any, tokens: Tensor) -> Tensor:
        return _tensor(layer.output_layer_norm(layer.ffn(tokens) + tokens))


FAMILIES: dict[str, Family] = {
    "vit": _VisionTransformer(),
    "deit": _VisionTransformer(),
    "bert": _Bert(),
    "roberta": _Bert(),
    "xlm-roberta": _Bert(),
    "camembert": _Bert(),
    "distilbert": _DistilBert(),
}
"""By the `model_type` of a model's configuration."""
