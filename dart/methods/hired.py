"""HiRED: the thumbnail shares a budget out among tiles, each keeps what its class token attends to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dart.methods.base import Method, View, check_budget
from dart.methods.shares import keep_shared, size_of_part
from dart.methods.thumbnails import tiled


@dataclass(frozen=True)
class HiRED(Method):
    """HiRED (Arif et al., AAAI 2025, arXiv 2408.10945).

    Signal: attention that the tower's class token pays to a patch, summed over heads: late in the tower it ranks the patches
        of a tile, early in the tower the thumbnail's tells how much each tile shows.
    Place: before the language model.
    Attention: class token's row in the tower, at the first layer and at the layer whose output the projector gets.
    Source: "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models", arXiv
        2408.10945, Algorithm 1.
    Licence of the original: MIT; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt, the original renumbers them and drops LLaVA-NeXT's newline
        tokens; here these count, and come last. A tile's share is the thumbnail's attention over the tile, interpolated to
        the tile's tokens; the authors' code counts the thumbnail's strongest patches, in as many equal runs in reading order
        as there are tiles. Shares are rounded so that the budget is met exactly, where the original rounds down; what a tile
        or the thumbnail cannot use goes to the others. A picture without tiles keeps its most attended. Several pictures
        share by the tokens they have.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, pooled over its images, all if there are fewer.
    thumbnail_share : float
        The part of a picture's budget that its thumbnail gets (the paper's alpha); default 0.5.
    layer : int
        First decoder layer that sees the short sequence; default 0, before the language model.

    Raises
    ------
    ValueError
        A negative budget, a part outside [0, 1]; a tower without a class token.
    """

    keep: int
    thumbnail_share: float = field(default=0.5, kw_only=True)
    layer: int = field(default=0, kw_only=True)

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1, 0)

    def __post_init__(self):
        check_budget(keep=self.keep)
        if not 0 <= self.thumbnail_share <= 1:
            raise ValueError(f"thumbnail_share={self.thumbnail_share}; it is a part of the budget, give 0 to 1")

    def select(self, view: View) -> Tensor:
        vision = view.vision
        pictures = vision.views.masked_fill(~view.image_mask, -1)
        weights = size_of_part(pictures).float()
        for sample, thumbnail, tokens, tiles, guide in tiled(view, vision.class_attention(0).sum(1)):
            whole = len(tokens) + thumbnail.sum()
            shown = guide @ tiles.float()
            weights[sample, thumbnail] = self.thumbnail_share * whole
            weights[sample, tokens] = (1 - self.thumbnail_share) * whole * (tiles.float() @ (shown / shown.sum()))
        scores = vision.to_tokens(vision.class_attention().sum(1))
        return keep_shared(scores, pictures, weights, view.image_mask, self.keep)
