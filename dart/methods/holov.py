"""HoloV: every crop of the picture gets a share, by its attention and by how varied it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from dart.methods.base import Method, View, check_budget
from dart.methods.shares import keep_shared, rank_within, size_of_part


@dataclass(frozen=True)
class HoloV(Method):
    """HoloV (Zou et al., NeurIPS 2025, arXiv 2510.02912).

    Signal: attention that the tower's class token pays to a patch, mean over heads (without class token, what all patches pay
        to it), ranks the tokens of a crop. Crops share the budget by that attention and by diversity: the variance of a
        token's cosines to the other tokens of its crop.
    Place: before the language model.
    Attention: class token's row in the tower, at the layer whose output the projector gets; all rows if there is none.
    Source: "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention", arXiv 2510.02912,
        method section; known from the authors' code: 16 crops, each a run of tokens in reading order, weight 0.09 of the
        diversity, scaled to the mean of the attention.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt. The authors' code scales diversity to attention crop by crop, so
        that it cancels out of the shares; here it is scaled over the whole picture. A crop's share goes by the sum of its
        scores, there by their mean, the same for crops of equal size; what a crop cannot use goes to the others, there it is
        lost. The cosine of a token to itself is left out of the variance. Every picture and tile has its own crops.
        LLaVA-NeXT's newline tokens count, and come last.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, pooled over its images, all if there are fewer.
    crops : int
        Into how many a picture is cut; default 16.
    diversity : float
        Its weight against attention, 0 or more; default 0.09.
    layer : int
        First decoder layer that sees the short sequence; default 0, before the language model.

    Raises
    ------
    ValueError
        A negative budget or weight, no crop.
    """

    keep: int
    crops: int = field(default=16, kw_only=True)
    diversity: float = field(default=0.09, kw_only=True)
    layer: int = field(default=0, kw_only=True)

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)

    def __post_init__(self):
        check_budget(keep=self.keep)
        check_budget(crops=self.crops)
        if self.crops == 0:
            raise ValueError("crops=0; give 1 or more")
        if self.diversity < 0:
            raise ValueError(f"diversity={self.diversity}; give 0 or more")

    def select(self, view: View) -> Tensor:
        vision = view.vision
        attention = vision.class_attention().mean(1) if vision.class_tokens else vision.patch_attention().mean(1)
        scores = vision.to_tokens(attention)
        pictures = vision.views.masked_fill(~view.image_mask, -1)
        in_reading_order = rank_within(torch.zeros_like(scores), pictures)
        crops = in_reading_order * self.crops // size_of_part(pictures)
        weights = torch.zeros_like(scores)
        directions = normalize(view.hidden_states.float(), dim=-1)
        for sample in range(len(scores)):
            for picture in pictures[sample].unique().tolist():
                if picture < 0:
                    continue
                tokens = (pictures[sample] == picture).nonzero().flatten()
                member, attended = one_hot(crops[sample, tokens], self.crops).float(), scores[sample, tokens]
                varied = _variance(directions[sample, tokens], member @ member.T)
                varied *= attended.mean() / varied.mean().clamp(min=1e-12)
                weights[sample, tokens] = member @ ((attended + self.diversity * varied) @ member)
        parts = (pictures * self.crops + crops).masked_fill(pictures < 0, -1)
        return keep_shared(scores, parts, weights, view.image_mask, self.keep)


def _variance(directions: Tensor, together: Tensor) -> Tensor:
    """Variance of the cosines of each of (n, width) `directions` to the others `together` with it, (n, n) of 0 and 1."""
    cosines, others = directions @ directions.T, together.clone().fill_diagonal_(0)
    count = others.sum(1).clamp(min=1)
    mean = (cosines * others).sum(1) / count
    return ((cosines - mean[:, None]).square() * others).sum(1) / count
