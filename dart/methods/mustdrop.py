"""MustDrop: merge neighbours that look alike, protect what the vision tower looks at, drop what no word attends to."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from dart.methods.base import Method, Reduction, View, check_budget, keep_top


@dataclass(frozen=True)
class MustDrop(Method):
    """MustDrop (Liu et al., 2024, arXiv 2411.10803).

    Signal: likeness of neighbouring patches (what merges); attention of the tower's class token (what is protected); attention
        of all words together and of the one word that attends most (what is dropped: tokens low in both).
    Place: before the language model (merging), then before decoder layer 2.
    Attention: class token's row in the tower; rows of all text tokens, layer before.
    Source: "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model", arXiv 2411.10803: local
        spatial merging, key token set, dual-attention filtering, as its abstract has them.
    Licence of the original: Apache-2.0 by its readme, without a licence file; re-implemented from the paper.
    Differs: meets a number of tokens where the original has thresholds on both attentions: tokens are ranked by each, and the
        better rank counts. Chosen here: windows of 2 x 2, merged if every patch has a cosine of 0.9 or more to the window's
        mean and never below `keep` tokens; key tokens are a quarter of the budget; one place for the filter. Likeness is that
        of tower states before the projector, what is averaged are its outputs. A merged token stands where the first of its
        patches stood, and kept tokens keep their positions in the prompt, the originals renumber. The decoding stage, which
        evicts image tokens from the cache while the answer is written, is left out: only prompts are reduced here.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay from `layer` on, all if there are fewer.
    window : int
        Side of the windows that may merge, in patches; default 2.
    threshold : float
        Least cosine of a patch to the mean of its window if it shall merge; default 0.9. Above 1 nothing merges.
    key_share : float
        Fraction of the budget that goes to key tokens, which the filter may not drop; default 0.25.
    layer : int
        Decoder layer before which the words decide, 1 or later; default 2.

    Raises
    ------
    ValueError
        A negative budget, a window below 1, a share outside [0, 1], layer 0.
    """

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)

    keep: int
    window: int = field(default=2, kw_only=True)
    threshold: float = field(default=0.9, kw_only=True)
    key_share: float = field(default=0.25, kw_only=True)

    def __post_init__(self):
        check_budget(keep=self.keep)
        if not isinstance(self.window, Integral) or self.window < 1:
            raise ValueError(f"window={self.window!r}; give a whole number of patches, 1 or more")
        if not 0 <= self.key_share <= 1:
            raise ValueError(f"key_share={self.key_share}; it is a fraction of the budget, give 0 <= key_share <= 1")
        if self.layer == 0:
            raise ValueError("layer=0 is the place of the merging, and has no attention before it; use layer=1 or later")

    def places(self, n_layers: int) -> tuple[int, ...]:
        return (0, self.layer)

    def select(self, view: View) -> Reduction:
        return self._merge(view) if view.stage == 0 else self._filter(view)

    def _merge(self, view: View) -> tuple[Tensor, Tensor]:
        vision, kept, states = view.vision, view.image_mask.clone(), view.hidden_states.clone()
        features, salience = vision.features.float(), vision.to_tokens(vision.class_attention().float().mean(1))
        number, row, column = view.grid.unbind(-1)
        windows = torch.stack([number, row // self.window, column // self.window], -1)
        for i, cells in enumerate(windows):
            tokens = (view.image_mask[i] & (cells[:, 0] >= 0)).nonzero().flatten()
            if not len(tokens):
                continue
            inside = one_hot(cells[tokens].unique(dim=0, return_inverse=True)[1])              # (tokens, windows)
            size = inside.sum(0)
            share = inside.T.float() / size[:, None]
            likeness = cosine_similarity(features[i, tokens], (share @ features[i, tokens])[inside.argmax(1)], dim=-1)
            alike = likeness[:, None].masked_fill(inside == 0, torch.inf).amin(0).masked_fill(size < 2, -torch.inf)
            order = alike.argsort(descending=True, stable=True)
            room = int(view.image_mask[i].sum()) - self.keep
            merging = order[(alike[order] >= self.threshold) & ((size[order] - 1).cumsum(0) <= room)]
            first = tokens[inside.argmax(0)[merging]]
            kept[i, tokens[inside[:, merging].any(1)]] = False
            kept[i, first] = True
            states[i, first] = (share[merging] @ view.hidden_states[i, tokens].float()).to(states.dtype)
            salience[i, first] = share[merging] @ salience[i, tokens]
        keys = (view.image_mask.sum(1).clamp(max=self.keep) * self.key_share).long()
        is_key = keep_top(salience, kept & (vision.patches >= 0), keys)
        # Positions change on the way to the next place, the order of what stays does not.
        view.memory["keys"] = is_key.take_along_dim(_first(kept), 1)
        return kept, states

    def _filter(self, view: View) -> Tensor:
        image, length = view.image_mask, view.image_mask.shape[1]
        is_key = torch.zeros_like(image).scatter(1, _first(image), view.memory["keys"][:, :length])
        rows = _first(view.text_mask)[:, : max(int(view.text_mask.sum(1).max()), 1)]
        is_word = view.text_mask.take_along_dim(rows, 1)
        paid = view.attention(torch.where(is_word, rows, view.last_token)).float().mean(1) * is_word[..., None]
        ranks = torch.stack([_first(score.masked_fill(~image, -1)).argsort(dim=1) for score in (paid.sum(1), paid.amax(1))])
        better, worse = ranks.amin(0), ranks.amax(0)
        return keep_top((-better * length - worse).masked_fill(is_key, 1), image, self.keep)


def _first(scores: Tensor) -> Tensor:
    """Positions by falling score, the earlier first among equals."""
    return scores.float().argsort(dim=1, descending=True, stable=True)
