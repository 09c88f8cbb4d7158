"""Merge tokens that are alike, between a layer's attention and its feed-forward part.

The algorithm is that of Bolya et al., "Token Merging: Your ViT But Faster" (ICLR 2023). Those that may merge are split
in turn into two sets; each of the first finds the one of the second whose key is nearest, and the nearest pairs merge
by a mean weighted by how many tokens each already stands for. Ours keeps the order of what is left, so that in every
layer neighbours meet, and takes rows of different lengths, each merged as it would be alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Merged(NamedTuple):
    """Tokens `[B, N, D]`, how many each stands for `[B, N]` (0: padding), and how many of each row may merge `[B]`.

    `counts` is `None` where that is all but the first `fixed` in every row.
    """

    tokens: Tensor
    sizes: Tensor
    counts: Tensor | None


def merge(given: Merged, keys: Tensor, fixed: int, most: int) -> Merged:
    """`most` tokens fewer in each row, but never more than half of its mergeable ones.

    `keys` `[B, N, K]` say which are alike. The first `fixed` tokens of a row neither merge nor are merged into; after
    them come its `counts` mergeable ones, then padding. A row's result does not depend on the others. Sums of sizes and
    sums of tokens weighted by sizes stay what they were.
    """
    tokens, sizes, counts = given
    batch, length, width = tokens.shape
    if counts is None:
        going = min(most, (length - fixed) // 2)
        left = length - going
        valid = None
    else:
        each = (counts // 2).clamp(max=most)
        going = int(each.max())
        counts = counts - each
        left = fixed + int(counts.max())
        valid = torch.arange(going, device=tokens.device) < each[:, None]
    if going < 1:
        return given if counts is None else Merged(tokens[:, :left], sizes[:, :left], counts)
    target, source = _pairs(keys, fixed, going, given.counts)

    weights = sizes[:, fixed::2].gather(1, source)
    if valid is not None:
        weights = weights * valid
    wide = (batch, going, width)
    moved = tokens[:, fixed::2].gather(1, source[..., None].expand(wide)) * weights[..., None].to(tokens.dtype)
    stays, stays_size = tokens[:, fixed + 1 :: 2], sizes[:, fixed + 1 :: 2]
    sums = (stays * stays_size[..., None].to(tokens.dtype)).scatter_add(1, target[..., None].expand(wide), moved)
    new_sizes, new_tokens = sizes.clone(), tokens.clone()
    new_sizes[:, fixed + 1 :: 2] = stays_size.scatter_add(1, target, weights)
    new_tokens[:, fixed + 1 :: 2] = sums / new_sizes[:, fixed + 1 :: 2, None].clamp(min=1).to(tokens.dtype)

    gone = torch.zeros(batch, length, dtype=torch.uint8, device=tokens.device)
    gone.scatter_(1, fixed + 2 * source, 1 if valid is None else valid.to(torch.uint8))
    kept = gone.argsort(dim=1, stable=True)[:, :left]
    return Merged(new_tokens.gather(1, kept[..., None].expand(batch, left, width)), new_sizes.gather(1, kept), counts)


def _pairs(keys: Tensor, fixed: int, going: int, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of the pairs most alike, `[B, going]`: whom they merge into, counted in the second set, and who, in the first."""
    keys = normalize(keys.float() if keys.dtype in (torch.half, torch.bfloat16) else keys, dim=-1)
    first, second = keys[:, fixed::2], keys[:, fixed + 1 :: 2]
    alike = first @ second.transpose(1, 2)
    if counts is not None:
        places = torch.arange(first.shape[1], device=keys.device) * 2
        alike = alike.masked_fill((places >= counts[:, None])[..., None], -torch.inf)
        places = torch.arange(second.shape[1], device=keys.device) * 2 + 1
        alike = alike.masked_fill((places >= counts[:, None])[:, None], -torch.inf)
    nearest, whom = alike.max(dim=2)
    source = nearest.topk(going, dim=1).indices
    return whom.gather(1, source), source
