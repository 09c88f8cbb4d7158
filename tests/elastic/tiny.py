"""Small models with random weights, in double precision: what differs then differs by more than rounding."""

import functools
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

WORDS = 50


@functools.cache
def model(kind: str) -> Any:
    torch.manual_seed(3)
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    text = {"vocab_size": WORDS, "max_position_embeddings": 64, "initializer_range": 0.3}
    match kind:
        case "vit":
            made = ViTModel(ViTConfig(**shape, image_size=16, patch_size=4, initializer_range=0.2))
        case "deit":
            made = DeiTModel(DeiTConfig(**shape, image_size=12, patch_size=4, initializer_range=0.2))
        case "bert":
            made = BertModel(BertConfig(**shape, **text))
        case "roberta":
            made = RobertaModel(RobertaConfig(**shape, **text))
        case "distilbert":
            made = DistilBertModel(
                DistilBertConfig(dim=24, n_layers=3, n_heads=4, hidden_dim=48, **text)  # its own names
            )
        case _:
            raise ValueError(kind)
    return made.eval().double()


TEXT = ("bert", "roberta", "distilbert")
IMAGES = ("vit", "deit")


def texts(*lengths: int, to: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of so many tokens, padded to the longest or to `to`. A row is the same whatever stands beside it."""
    width = to or max(lengths)
    ids = torch.ones(len(lengths), width, dtype=torch.long)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        made = torch.Generator().manual_seed(seed + length)
        ids[row, :length] = torch.randint(3, WORDS, (length,), generator=made)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def images(kind: str, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    side = model(kind).config.image_size
    made = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(count, 3, side, side, generator=made, dtype=torch.double)}
