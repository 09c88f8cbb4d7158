"""What a token setting costs in arithmetic: tokens and multiply-accumulates layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from foreserve.elastic.setting import PLAIN, Merge, Prompts, Setting


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder's shape. `tokens` are those of one input, of which `fixed` (class token and the like) never merge.

    `embedding` are the multiply-accumulates that come before the first layer.
    """

    tokens: int
    layers: int
    width: int
    hidden: int
    fixed: int = 1
    embedding: int = 0


VIT_B_16 = Shape(tokens=197, layers=12, width=768, hidden=3072, embedding=196 * 768**2)
"""At 224 by 224 pixels."""


def token_counts(shape: Shape, setting: Setting) -> Iterator[tuple[int, int]]:
    """How many tokens each layer's attention has, and how many its feed-forward part has after it merged."""
    count = shape.tokens + (setting.p if isinstance(setting, Prompts) else 0)
    most = setting.r if isinstance(setting, Merge) else 0
    for _ in range(shape.layers):
        left = count - min(most, (count - shape.fixed) // 2)
        yield count, left
        count = left


def macs(shape: Shape, setting: Setting = PLAIN) -> int:
    """Multiply-accumulates of one input: 4ND^2 + 2N^2D of attention and 2N'DH of the feed-forward part, each layer."""
    d, h = shape.width, shape.hidden
    return shape.embedding + sum(
        4 * n * d * d + 2 * n * n * d + 2 * left * d * h for n, left in token_counts(shape, setting)
    )
