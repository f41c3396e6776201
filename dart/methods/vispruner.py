"""VisPruner: important patches by attention, and of the rest those that are left when duplicates are removed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dart.methods.base import Method, View, check_budget
from dart.methods.shares import keep_shared, size_of_part, to_be_cut


@dataclass(frozen=True)
class VisPruner(Method):
    """VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818v2).

    Signal: attention that the tower's class token pays to a patch, mean over heads (without class token, what all patches pay
        to it), for the important; cosine of the tower's states for the diverse: again and again the others are split into two
        halves, and those of one half that are most like something in the other go.
    Place: before the language model.
    Attention: class token's row in the tower, at the layer whose output the projector gets; all rows if there is none.
    Source: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", arXiv 2412.01818v2,
        method section; known from the authors' code: half of the budget for the important, 8 removed at a time, halves by
        turns in the order of falling attention.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt, the original renumbers them. The original keeps a fixed number of
        tokens of every picture and tile; here the sample's budget is shared among them in proportion to the tokens they have
        in the prompt. LLaVA-NeXT's newline tokens, which the original keeps besides, count and come last.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, pooled over its images, all if there are fewer.
    important : float
        The part of the budget that goes by attention, rounded down; default 0.5.
    at_once : int
        Duplicates removed before halves are made anew; default 8.
    layer : int
        First decoder layer that sees the short sequence; default 0, before the language model.

    Raises
    ------
    ValueError
        A negative budget, a part outside [0, 1], nothing removed at once.
    """

    keep: int
    important: float = field(default=0.5, kw_only=True)
    at_once: int = field(default=8, kw_only=True)
    layer: int = field(default=0, kw_only=True)

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)

    def __post_init__(self):
        check_budget(keep=self.keep)
        if not 0 <= self.important <= 1:
            raise ValueError(f"important={self.important}; it is a part of the budget, give 0 <= important <= 1")
        check_budget(at_once=self.at_once)
        if self.at_once == 0:
            raise ValueError("at_once=0; give 1 or more, or duplicates are never removed")

    def select(self, view: View) -> Tensor:
        vision = view.vision
        attention = vision.class_attention().mean(1) if vision.class_tokens else vision.patch_attention().mean(1)
        scores = vision.to_tokens(attention)
        pictures = vision.views.masked_fill(~view.image_mask, -1)
        kept = keep_shared(scores, pictures, size_of_part(pictures), view.image_mask, self.keep)
        directions = normalize(vision.features.float(), dim=-1)
        for sample, tokens, share in to_be_cut(kept, pictures):
            tokens = tokens[scores[sample, tokens].argsort(descending=True, stable=True)]
            first = int(share * self.important)
            kept[sample, tokens[first:]] = False
            kept[sample, tokens[first:][self._distinct(directions[sample, tokens[first:]], share - first)]] = True
        return kept

    def _distinct(self, directions: Tensor, keep: int) -> Tensor:
        """Which of the (n, width) `directions` are left when duplicates have been removed, int64 (keep,)."""
        likeness = directions @ directions.T
        left = torch.arange(len(directions), device=directions.device)
        while len(left) > max(keep, 1):      # a single one has no other half
            half, other = left[::2], left[1::2]
            nearest = likeness[half][:, other].amax(1)
            gone = min(self.at_once, len(left) - keep, len(half))
            left = torch.cat([half[nearest.argsort(descending=True, stable=True)[gone:]], other])
        return left[:keep]
