"""PruMerge: patches that stand out in the class token's attention stay, and take in those with keys like theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dart.methods.base import Method, View, check_budget
from dart.methods.shares import keep_shared, size_of_part, to_be_cut


@dataclass(frozen=True)
class PruMerge(Method):
    """LLaVA-PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388).

    Signal: attention that the tower's class token pays to a patch, mean over heads. What stays becomes itself plus the sum of
        the patches whose keys have the highest cosine to its own, each times the attention it has.
    Place: before the language model.
    Attention: class token's row in the tower, at the layer whose output the projector gets.
    Source: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv 2403.15388, method
        section; known from the authors' code: 32 neighbours, cosine, a token's own state inside the sum.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt, the original renumbers them. Merged are the embeddings that the
        projector made, in the original the tower's states before it. The authors' code reads the tower's last layer, over all
        heads' channels at once, and appends one token, the sum of all that went; here there is none. The exact budget is
        ours, the paper takes what stands out; it is shared among pictures in proportion to the tokens they have in the
        prompt. LLaVA-NeXT's newline tokens count, and come last; with the paper's rule they go.

    Parameters
    ----------
    keep : int or None
        This many image tokens of every sample stay, pooled over its images, all if there are fewer. None, the default, is the
        paper's rule: of every picture those patches stay whose attention is more than 1.5 interquartile ranges above the third
        quartile.
    neighbours : int
        How many are taken in by each; default 32.
    layer : int
        First decoder layer that sees the short sequence; default 0, before the language model.

    Raises
    ------
    ValueError
        A negative budget or number of neighbours; a tower without a class token.
    """

    keep: int | None = None
    neighbours: int = field(default=32, kw_only=True)
    layer: int = field(default=0, kw_only=True)

    reads_tower: ClassVar[bool] = True
    tower_layers: ClassVar[tuple[int, ...]] = (-1,)

    def __post_init__(self):
        if self.keep is not None:
            check_budget(keep=self.keep)
        check_budget(neighbours=self.neighbours)

    def select(self, view: View) -> tuple[Tensor, Tensor]:
        vision = view.vision
        attention = vision.class_attention().mean(1)
        scores = vision.to_tokens(attention)
        pictures = vision.views.masked_fill(~view.image_mask, -1)
        if self.keep is None:
            lower, upper = attention.quantile(torch.tensor([0.25, 0.75], device=attention.device), dim=1, keepdim=True)
            kept = vision.to_tokens(attention > upper + 1.5 * (upper - lower))
        else:
            kept = keep_shared(scores, pictures, size_of_part(pictures), view.image_mask, self.keep)
        keys = vision.layer().keys.float().transpose(1, 2).flatten(2)[:, vision.class_tokens :]
        keys = normalize(vision.to_tokens(keys), dim=-1)
        states = view.hidden_states.clone()
        for sample, tokens, share in to_be_cut(kept, pictures):
            stays = kept[sample, tokens].nonzero().flatten()
            likeness = keys[sample, tokens[stays]] @ keys[sample, tokens].T
            likeness[torch.arange(share, device=stays.device), stays] = -torch.inf          # not its own neighbour
            nearest = likeness.argsort(dim=1, descending=True, stable=True)[:, : self.neighbours]
            weights = torch.zeros_like(likeness).scatter(1, nearest, scores[sample, tokens][nearest])
            weights[torch.arange(share, device=stays.device), stays] = 1
            states[sample, tokens[stays]] = (weights @ view.hidden_states[sample, tokens].float()).to(states.dtype)
        return kept, states
