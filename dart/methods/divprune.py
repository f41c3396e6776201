"""DivPrune: keep the tokens that lie farthest from each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dart.methods.base import Method, View, check_budget


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175).

    Signal: cosine distance between projected image tokens; greedy max-min diversity.
    Place: before the language model.
    Attention: none.
    Source: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv 2503.02175, section 3 and
        Algorithm 1.
    Licence of the original: non-commercial; re-implemented from the paper.
    Differs: kept tokens keep their positions in the prompt, the original renumbers. The budget is a number of tokens, the
        paper's a fraction. Newline tokens of LLaVA-NeXT are candidates like others; being one and the same vector, all of
        them but one come last.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, pooled over its images; all if there are fewer.
    layer : int
        First decoder layer that sees the short sequence; default 0. At later layers the hidden states are compared.

    Raises
    ------
    ValueError
        A negative budget.
    """

    keep: int
    layer: int = field(default=0, kw_only=True)

    def __post_init__(self):
        check_budget(keep=self.keep)

    def select(self, view: View) -> Tensor:
        kept = torch.zeros_like(view.image_mask)
        for row, image in enumerate(view.image_mask):
            kept[row, image] = _farthest(view.hidden_states[row, image], self.keep)
        return kept


def _farthest(states: Tensor, keep: int) -> Tensor:
    """Mark `keep` states, each as far as can be from those marked before it."""
    chosen = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    directions = normalize(states.float(), dim=-1)
    distances = 1 - directions @ directions.T
    distances.fill_diagonal_(torch.inf)
    # The first is the one whose nearest neighbour is farthest; from then on only those chosen count as neighbours.
    scores = distances.amin(1) if len(states) else distances.new_zeros(0)
    nearest = torch.full_like(scores, torch.inf)
    for _ in range(min(keep, len(states))):
        pick = scores.argmax()
        chosen[pick] = True
        nearest = nearest.minimum(distances[pick])
        scores = nearest.masked_fill(chosen, -torch.inf)
    return chosen
