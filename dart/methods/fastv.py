"""FastV: keep what the last text token attends to after the second layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dart.methods.base import Method, View, check_budget, keep_top


@dataclass(frozen=True)
class FastV(Method):
    """FastV (Chen et al., ECCV 2024, arXiv 2403.06764).

    Signal: attention that an image token receives, mean over heads.
    Place: before decoder layer 2.
    Attention: row of the last text token, layer before.
    Source: "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764; layer 2 is its K. That attention is
        counted from the last token alone is known from the authors' code; the paper says the mean over all tokens.
    Licence of the original: none stated; re-implemented from the paper.
    Differs: takes a number of tokens instead of the fraction R. Attention is recomputed from queries and keys, so that fused
        kernels stay on.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, all if there are fewer.
    layer : int
        First decoder layer that sees the short sequence, 1 or later; default 2.

    Raises
    ------
    ValueError
        A negative budget; layer 0.
    """

    keep: int

    def __post_init__(self):
        check_budget(keep=self.keep)
        if self.layer == 0:
            raise ValueError("layer=0 has no layer before it whose attention could be read; use layer=1 or later")

    def select(self, view: View) -> Tensor:
        received = view.attention(view.last_token)[:, :, 0].float().mean(1)
        return keep_top(received, view.image_mask, self.keep)
