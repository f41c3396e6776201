"""FitPrune: how many tokens each layer drops is fitted beforehand, so that every layer loses as much attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from dart.methods.base import Method, View, check_budget, keep_top

LLAVA = (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0)
"""Tokens of 576 that each layer of LLaVA-1.5 7B drops if 60 % of the FLOPs shall go (authors' code); 127 are left."""


@dataclass(frozen=True)
class FitPrune(Method):
    """FitPrune (Ye et al., AAAI 2025, arXiv 2409.10197).

    Signal: attention from other image tokens times attention from the words behind the image, each the maximum over heads.
    Place: progressively, behind every layer in which the recipe drops tokens.
    Attention: rows of all tokens, layer before; those of image tokens and of the words behind them count.
    Source: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models", arXiv
        2409.10197: score, and the fit by binary search (:func:`fit`). The default recipe, and that the maximum over heads is
        taken, are known from the authors' code.
    Licence of the original: Apache-2.0, by the file in its copy of LLaVA; re-implemented from the paper.
    Differs: the recipe tells the shape only: its counts are scaled so that `keep` tokens stay behind the last place, and
        stretched to the depth of the model; the original has a recipe of its own for every budget in FLOPs. A layer's dropped
        tokens still pass its MLP here. :func:`fit` works on the statistics of one unpruned pass; the authors' code runs the
        pruned model at every step. Without words behind the image the last token stands for them. Tokens of several images are
        pooled.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay from the last place on, all if there are fewer.
    recipe : tuple of int
        Tokens that each layer drops, for a decoder of ``len(recipe)`` layers. Default :data:`LLAVA`; :func:`fit` makes others.

    Raises
    ------
    ValueError
        A negative budget, a recipe that drops nothing before the last layer or has negative numbers.
    """

    keep: int
    recipe: tuple[int, ...] = field(default=LLAVA, kw_only=True)
    layer: int = field(default=1, init=False, repr=False)      # there are several

    def __post_init__(self):
        check_budget(keep=self.keep)
        if min(self.recipe, default=0) < 0 or not sum(self.recipe[:-1]):
            raise ValueError(
                f"recipe={self.recipe}; give tokens to drop for every layer, 0 or more, and some before the last layer"
            )

    def _shares(self, n_layers: int) -> dict[int, float]:
        """Place: fraction of all dropped tokens that are gone behind it."""
        n_fitted = len(self.recipe)
        gone = np.interp(np.arange(n_layers) * n_fitted / n_layers, range(n_fitted + 1), [0, *accumulate(self.recipe)])
        return {place: gone[place] / gone[-1] for place in range(1, n_layers) if gone[place] > gone[place - 1]}

    def places(self, n_layers: int) -> tuple[int, ...]:
        return tuple(self._shares(n_layers))

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        counts, shares = [image_tokens], self._shares(n_layers)
        for layer in range(1, n_layers):
            counts.append(int(self._left(torch.tensor(image_tokens), shares[layer])) if layer in shares else counts[-1])
        return counts

    def _left(self, image_count: Tensor, share: float) -> Tensor:
        return image_count - ((image_count - self.keep).clamp(min=0) * share).round().long()

    def select(self, view: View) -> Tensor:
        left = self._left(view.image_count, self._shares(view.n_layers)[view.layer])
        if bool((left >= view.image_mask.sum(1)).all()):
            return view.image_mask
        own, cross = received(view)
        return keep_top(own * cross, view.image_mask, left)


def received(view: View) -> tuple[Tensor, Tensor]:
    """Attention that tokens receive in the layer before, maximum over heads: what the score and :func:`fit` are made of.

    Returns
    -------
    own, cross : Tensor, float32 (batch, length)
        Mean over image tokens that attend, and mean over words behind the image.
    """
    length = view.image_mask.shape[1]
    positions = torch.arange(length, device=view.image_mask.device).expand_as(view.image_mask)
    words = view.text_mask & (positions > positions.masked_fill(~view.image_mask, -1).amax(1, keepdim=True))
    words = torch.where(words.any(1, keepdim=True), words, positions == view.last_token)
    # A row of padding attends to nothing: NaN, which no product with zero would take away.
    strongest = view.attention(positions).float().amax(1).masked_fill(view.padding_mask[..., None], 0)
    own, cross = ((strongest * who[..., None]).sum(1) / who.sum(1, keepdim=True).clamp(min=1) for who in (view.image_mask, words))
    return own, cross


def fit(own: Tensor, cross: Tensor, keep: int) -> tuple[int, ...]:
    """Find the recipe that leaves `keep` tokens at the least loss of attention.

    A layer may lose the fraction alpha of the attention that image tokens receive from each other, and the same fraction of
    what they receive from the words. It drops the tokens that both losses allow. Alpha is the least that leaves no more than
    `keep` tokens.

    Parameters
    ----------
    own, cross : Tensor, (samples, n_layers, tokens)
        What :func:`received` says of the image tokens of an unpruned pass, layer by layer.
    keep : int
        Tokens that shall be left.

    Returns
    -------
    tuple of int
        Tokens that each layer drops, the mean over samples.
    """
    low, high = 0.0, 1.0
    for _ in range(20):
        alpha = (low + high) / 2
        low, high = (low, alpha) if own.shape[2] - sum(_dropped(own, cross, alpha)) <= keep else (alpha, high)
    return _dropped(own, cross, high)


def _dropped(own: Tensor, cross: Tensor, alpha: float) -> tuple[int, ...]:
    gone = torch.zeros_like(own[:, 0], dtype=torch.bool)
    counts = []
    for layer in range(own.shape[1]):
        spare = torch.ones_like(gone)
        for mass in (own[:, layer].double(), cross[:, layer].double()):
            order = mass.masked_fill(gone, -1).argsort(dim=1, stable=True)
            lost = mass.take_along_dim(order, 1).cumsum(1)
            spare &= torch.zeros_like(gone).scatter(1, order, lost <= alpha * lost[:, -1:])
        counts.append(int((spare & ~gone).sum()) // len(gone))
        gone |= spare
    return tuple(counts)
