"""FasterVLM: keep what the class token of the vision tower attends to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dart.methods.base import Method, View, check_budget
from dart.methods.shares import keep_shared, size_of_part


@dataclass(frozen=True)
class FasterVLM(Method):
    """FasterVLM (Zhang et al., 2024, arXiv 2412.01818v1).

    Signal: attention that the tower's class token pays to a patch, mean over heads.
    Place: before the language model.
    Attention: class token's row in the tower, at the layer whose output the projector gets.
    Source: "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", arXiv
        2412.01818v1, method section; the layer is known from the authors' code.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt, the original renumbers them. The original keeps a fixed number of
        tokens of every picture and tile; here the sample's budget is shared among them in proportion to the tokens they have
        in the prompt. The original keeps LLaVA-NeXT's newline tokens besides; here they count, and come last.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, pooled over its images, all if there are fewer.
    layer : int
        First decoder layer that sees the short sequence; default 0, before the language model.

    Raises
    ------
    ValueError
        A negative budget; a tower without a class token.
    """

    keep: int
    layer: int = field(default=0, kw_only=True)

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)

    def __post_init__(self):
        check_budget(keep=self.keep)

    def select(self, view: View) -> Tensor:
        vision = view.vision
        scores = vision.to_tokens(vision.class_attention().mean(1))
        pictures = vision.views.masked_fill(~view.image_mask, -1)
        return keep_shared(scores, pictures, size_of_part(pictures), view.image_mask, self.keep)
