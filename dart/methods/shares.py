"""How a budget is shared among parts of a sample: pictures, tiles, crops. Pure tensors; knows no model.

A part of weight `w` bids `w / 0.5` for its first token, `w / 1.5` for its second, then `w / 2.5`, and so on; the budget goes to
the highest of all bids (Sainte-Laguë's method). Shares come out in proportion, the whole is met exactly, and what a small part
cannot use goes to the others by their weights, all in one sort.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dart.methods.base import keep_top


def rank_within(scores: Tensor, parts: Tensor) -> Tensor:
    """Rank of every token by falling score within its part, from 0; the earlier position first among equals.

    Parameters
    ----------
    scores : Tensor
        (batch, length).
    parts : Tensor
        int64 (batch, length): number of the part of each token.

    Returns
    -------
    Tensor
        int64 (batch, length).
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.take_along_dim(parts.take_along_dim(order, 1).argsort(dim=1, stable=True), 1)
    part = parts.take_along_dim(order, 1)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    first = torch.ones_like(part, dtype=torch.bool)
    first[:, 1:] = part[:, 1:] != part[:, :-1]
    starts = places.masked_fill(~first, 0).cummax(1).values
    return torch.empty_like(order).scatter(1, order, places - starts)


def size_of_part(parts: Tensor) -> Tensor:
    """How many tokens the part of each token has, int64 (batch, length); part numbers count from -1."""
    index = parts + 1
    counts = torch.zeros(len(parts), int(index.max()) + 1, dtype=torch.long, device=parts.device)
    return counts.scatter_add(1, index, torch.ones_like(index)).take_along_dim(index, 1)


def keep_shared(scores: Tensor, parts: Tensor, weights: Tensor, among: Tensor, keep: int | Tensor) -> Tensor:
    """Mark the highest scores of every part, as many as the part's share of the budget.

    Parameters
    ----------
    scores : Tensor
        (batch, length); rank tokens within their part only.
    parts : Tensor
        int64 (batch, length); -1 at tokens of no part, which come last.
    weights : Tensor
        (batch, length), 0 or more, the same at all tokens of a part: parts get shares in proportion.
    among : Tensor
        bool (batch, length): the candidates.
    keep : int or Tensor
        How many in all, or one number a row, int64 (batch,). All candidates if there are fewer.

    Returns
    -------
    Tensor
        bool (batch, length).
    """
    parts = parts.masked_fill(~among, -1)
    # a part of weight 0 has no share, but its best come first when budget is left
    bids = weights.float().clamp(min=1e-30) / (rank_within(scores, parts) + 0.5)
    return keep_top(bids.masked_fill(parts < 0, -1), among, keep)


def to_be_cut(kept: Tensor, parts: Tensor) -> Iterator[tuple[int, Tensor, int]]:
    """Go through the parts of which some tokens go: the sample, positions of the part's tokens int64 (n,), how many stay."""
    for sample in range(len(kept)):
        for part in parts[sample].unique().tolist():
            tokens = (parts[sample] == part).nonzero().flatten()
            share = int(kept[sample, tokens].sum())
            if part >= 0 and share < len(tokens):
                yield sample, tokens, share
