"""VisionZip: dominant patches stay, the others are merged into a few contextual ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from dart.methods.base import Method, View, check_budget
from dart.methods.shares import keep_shared, size_of_part, to_be_cut


@dataclass(frozen=True)
class VisionZip(Method):
    """VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467).

    Signal: attention that the tower's class token pays to a patch, mean over heads (without class token, what all patches pay
        to it), for the dominant; cosine of the tower's keys, mean over heads, for what is merged into which contextual token.
    Place: before the language model.
    Attention: class token's row in the tower, at the layer whose output the projector gets; all rows if there is none.
    Source: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467, method section; known
        from the authors' code: contextual tokens lie at even steps among those that are not dominant, and become their own
        state plus the mean of what is merged into them; 54 + 10, 108 + 20 and 162 + 30 of 64, 128 and 192.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt, the original puts the contextual ones behind the dominant ones
        and renumbers. Merged are the embeddings that the projector made, in the original the tower's states before it. The
        class token, which the original counts among the dominant, is not in the prompt; one more patch is. The original keeps
        a fixed number of tokens of every picture and tile; here the sample's budget is shared among them in proportion to the
        tokens they have in the prompt. LLaVA-NeXT's newline tokens count, and come last.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, pooled over its images, all if there are fewer.
    contextual : float
        The part of the budget that goes to contextual tokens, rounded; default 10 of 64.
    layer : int
        First decoder layer that sees the short sequence; default 0, before the language model.

    Raises
    ------
    ValueError
        A negative budget, a part outside [0, 1].
    """

    keep: int
    contextual: float = field(default=10 / 64, kw_only=True)
    layer: int = field(default=0, kw_only=True)

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)

    def __post_init__(self):
        check_budget(keep=self.keep)
        if not 0 <= self.contextual <= 1:
            raise ValueError(f"contextual={self.contextual}; it is a part of the budget, give 0 <= contextual <= 1")

    def select(self, view: View) -> tuple[Tensor, Tensor]:
        vision = view.vision
        attention = vision.class_attention().mean(1) if vision.class_tokens else vision.patch_attention().mean(1)
        scores = vision.to_tokens(attention)
        keys = normalize(vision.to_tokens(vision.layer().keys.float().mean(1)[:, vision.class_tokens :]), dim=-1)
        pictures = vision.views.masked_fill(~view.image_mask, -1)
        kept = keep_shared(scores, pictures, size_of_part(pictures), view.image_mask, self.keep)
        states = view.hidden_states.clone()
        for sample, tokens, share in to_be_cut(kept, pictures):
            contextual = round(share * self.contextual)
            if not contextual:
                continue
            dominant = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
            dominant[scores[sample, tokens].argsort(descending=True, stable=True)[: share - contextual]] = True
            others = tokens[~dominant]
            step = len(others) // contextual
            targets = others[::step][:contextual]
            merged = others[~torch.isin(others, targets)]
            nearest = (keys[sample, merged] @ keys[sample, targets].T).argmax(1)
            belongs = one_hot(nearest, contextual).float()
            means = belongs.T @ states[sample, merged].float() / belongs.sum(0).clamp(min=1)[:, None]
            states[sample, targets] = (states[sample, targets].float() + means).to(states.dtype)
            kept[sample, others] = False
            kept[sample, targets] = True
        return kept, states
