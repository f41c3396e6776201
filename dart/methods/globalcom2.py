"""GlobalCom2: the thumbnail commands how much of each tile stays, and has a say in which patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dart.methods.base import Method, View, check_budget
from dart.methods.shares import keep_shared, size_of_part
from dart.methods.thumbnails import tiled


@dataclass(frozen=True)
class GlobalCom2(Method):
    """GlobalCom2 (Liu et al., AAAI 2026, arXiv 2501.05179).

    Signal: score that the tower's class token gives a patch before the softmax, mean over heads. A softmax over the tiles, of
        what the thumbnail's scores sum to over each, tells how much of a tile stays; its own scores and the thumbnail's over
        it, each scaled to norm 1 and added, tell which patches.
    Place: before the language model.
    Attention: class token's row in the tower, at the layer whose output the projector gets.
    Source: "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large Vision-Language
        Models", arXiv 2501.05179, method section; that scores are those before the softmax, and the temperature 10, are known
        from the authors' code.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt. The authors' code reads the tower's last layer. Scores are
        logarithms of the attention, which moves those of a picture by a constant. What the thumbnail says over a tile is
        interpolated to the tile's tokens and averaged there, times the patches of the thumbnail for one tile, so that padding
        cut off a tile does not count. The original keeps LLaVA-NeXT's newline tokens and rounds every share down; here they
        count, and come last, and the budget is met exactly. A picture without tiles is compressed as a thumbnail is: by its
        own scores.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, pooled over its images, all if there are fewer.
    temperature : float
        Of the softmax over tiles, above 0; default 10. The higher, the more evenly tiles share.
    layer : int
        First decoder layer that sees the short sequence; default 0, before the language model.

    Raises
    ------
    ValueError
        A negative budget, a temperature not above 0; a tower without a class token.
    """

    keep: int
    temperature: float = field(default=10.0, kw_only=True)
    layer: int = field(default=0, kw_only=True)

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)

    def __post_init__(self):
        check_budget(keep=self.keep)
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; give a number above 0")

    def select(self, view: View) -> Tensor:
        vision = view.vision
        attention = vision.class_attention()
        per_patch = attention.clamp(min=1e-30).log().mean(1)
        scores = vision.to_tokens(per_patch)
        pictures = vision.views.masked_fill(~view.image_mask, -1)
        sizes = size_of_part(pictures).float()
        weights = sizes.clone()
        for sample, _, tokens, tiles, guide in tiled(view, per_patch):
            tiles = tiles.float()
            shown = guide @ tiles / tiles.sum(0) * (vision.patches_per_view / tiles.shape[1])
            more = (shown / self.temperature).softmax(0) - 1 / tiles.shape[1]
            weights[sample, tokens] = sizes[sample, tokens] * (1 + tiles @ more)
            both = scores[sample, tokens], guide
            scores[sample, tokens] = sum(one / (tiles @ (one.square() @ tiles)).sqrt() for one in both)
        return keep_shared(scores, pictures, weights, view.image_mask, self.keep)
