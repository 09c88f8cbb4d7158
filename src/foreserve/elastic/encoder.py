"""An elastic encoder round an unchanged Hugging Face model: the token setting is an argument of the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foreserve.elastic.families import FAMILIES, Family
from foreserve.elastic.merging import Merged, merge
from foreserve.elastic.setting import PLAIN, Merge, Plain, Prompts, Setting
from foreserve.errors import ConfigError


class Encoded(NamedTuple):
    """What comes out: tokens `[B, N, D]` with the class token first, and what each of them counts `[B, N]`.

    That is how many tokens of the input it stands for; 0 for padding and prompts. Under `Plain` the tokens are in the
    order of the input; otherwise only the first one's place means anything.
    """

    tokens: Tensor
    sizes: Tensor

    @property
    def first(self) -> Tensor:
        """The class token, `[B, D]`."""
        return self.tokens[:, 0]

    def mean(self) -> Tensor:
        """Over all tokens of each input, each as often as it stands for one, `[B, D]`."""
        weights = self.sizes[..., None].to(self.tokens.dtype)
        return (self.tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


class ElasticEncoder:
    """Runs `model` under any token setting. It holds no state: two calls never see each other.

    `model` is a Hugging Face encoder, or one with a head, whose encoder is then used. Any serves under `Plain`;
    `elastic` says whether the others are possible. Inference and training alike: gradients flow to prompts and weights.
    """

    def __init__(self, model: nn.Module) -> None:
        base: Any = getattr(model, str(getattr(model, "base_model_prefix", "")), model)
        self.model: Any = base
        self.config: Any = base.config
        self._family: Family | None = FAMILIES.get(self.config.model_type)
        if getattr(self.config, "is_decoder", False):
            self._family = None

    @property
    def elastic(self) -> bool:
        """Whether settings other than `Plain` are possible."""
        return self._family is not None

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return int(self.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """How wide a token is."""
        return int(self.config.hidden_size)

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        setting: Setting = PLAIN,
        prompts: Tensor | None = None,
    ) -> Encoded:
        """Encode a batch. `inputs` are those of the model's own forward pass, text padded on the right.

        `prompts` go with the setting `Prompts`: `[B, depth, p, D]` with a set for each row, where `depth` is 1 (put in
        before the first layer) or the model's (put in anew before each). Raises ConfigError for a setting that this
        model cannot have, ValueError for inputs or prompts that do not fit.
        """
        if isinstance(setting, Plain):
            tokens = self.model(**inputs).last_hidden_state
            return Encoded(tokens, _sizes(inputs, tokens))
        if self._family is None:
            known = ", ".join(sorted(FAMILIES))
            raise ConfigError(
                f"{setting}: models of type {self.config.model_type!r} serve as plain alone; elastic: {known}"
            )
        if isinstance(setting, Merge):
            return self._merged(self._family, inputs, setting.r)
        return self._prompted(self._family, inputs, setting, prompts)

    def _merged(self, family: Family, inputs: Mapping[str, Tensor], most: int) -> Encoded:
        tokens = family.embed(self.model, inputs)
        if family.text:
            fixed, given = _words(tokens, inputs)
        else:
            fixed = family.fixed(self.model)
            given = Merged(tokens, _sizes(inputs, tokens), None)
        touched = given.counts is not None
        for layer in family.layers(self.model):
            bias = given.sizes.log()[:, None, None] if touched else None
            attended, keys = family.attend(layer, given.tokens, bias)
            given = merge(Merged(attended, given.sizes, given.counts), keys, fixed, most)
            given = given._replace(tokens=family.feed(layer, given.tokens))
            touched = True
        return Encoded(family.finish(self.model, given.tokens), given.sizes)

    def _prompted(
        self, family: Family, inputs: Mapping[str, Tensor], setting: Prompts, prompts: Tensor | None
    ) -> Encoded:
        tokens = family.embed(self.model, inputs)
        sizes = _sizes(inputs, tokens)
        batch, _, width = tokens.shape
        if prompts is None or prompts.shape not in [(batch, n, setting.p, width) for n in (1, self.depth)]:
            found = "none" if prompts is None else f"{list(prompts.shape)}"
            raise ValueError(
                f"{setting} takes prompts of shape [{batch}, 1 or {self.depth}, {setting.p}, {width}], not {found}"
            )
        own = prompts.to(tokens.dtype)
        tokens = torch.cat([tokens[:, :1], own[:, 0], tokens[:, 1:]], dim=1)
        # For attention they count as one token each, for what is made of the tokens as none.
        seen = torch.cat([sizes[:, :1], sizes.new_ones(batch, setting.p), sizes[:, 1:]], dim=1)
        bias = seen.log()[:, None, None] if family.text else None
        for at, layer in enumerate(family.layers(self.model)):
            if at and own.shape[1] > 1:
                tokens = torch.cat([tokens[:, :1], own[:, at], tokens[:, 1 + setting.p :]], dim=1)
            attended, _ = family.attend(layer, tokens, bias)
            tokens = family.feed(layer, attended)
        seen[:, 1 : 1 + setting.p] = 0
        return Encoded(family.finish(self.model, tokens), seen)


def _sizes(inputs: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """1 for a token and 0 for padding."""
    mask = inputs.get("attention_mask")
    return tokens.new_ones(tokens.shape[:2], dtype=torch.float32) if mask is None else mask.to(torch.float32)


def _words(tokens: Tensor, inputs: Mapping[str, Tensor]) -> tuple[int, Merged]:
    """Each row as class token, separator, its words, padding; and that the first two are fixed.

    Attention does not heed the order, and the positions are in the tokens by now.
    """
    sizes = _sizes(inputs, tokens)
    if bool((sizes[:, :-1] < sizes[:, 1:]).any()):
        raise ValueError("rows of token ids must be padded on the right")
    lengths = sizes.sum(dim=1).long()
    batch, length, width = tokens.shape
    fixed = min(2, length)
    places = torch.arange(length, device=tokens.device).expand(batch, -1)
    last = (lengths - 1).clamp(min=1)[:, None]
    moved = torch.where((places > 1) & (places <= last), places - 1, places)
    order = torch.where(places == 1, last, moved).clamp(max=length - 1)
    return fixed, Merged(
        tokens.gather(1, order[..., None].expand(batch, length, width)),
        sizes.gather(1, order),
        (lengths - fixed).clamp(min=0),
    )
