"""CDPruner: keep tokens that differ from each other and have to do with the question."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dart.methods.base import Method, View, check_budget


@dataclass(frozen=True)
class CDPruner(Method):
    """CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967).

    Signal: a determinantal point process whose kernel is the cosine between image tokens, times the relevance of both for
        the question; greedy maximum.
    Place: before the language model.
    Attention: none.
    Source: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", arXiv 2506.10967,
        equations 3 to 8; the greedy search is that of Chen et al. 2018 which the paper cites.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: relevance is, for every family, what the paper uses where a tower has no text encoder of its own: the cosine
        between a projected image token and the mean embedding of the question. (For LLaVA the authors load the text half of
        CLIP, which stock models do not carry; their code takes that cosine with a minus sign.) The question is the text
        behind the last image token; without any, all text. Kept tokens keep their positions in the prompt, the original
        renumbers. Images are pooled; the authors prune each view by itself. Where as many tokens are chosen as there are
        independent directions, the earlier of the others come first. Newline tokens of LLaVA-NeXT are candidates like
        others; being one and the same vector, all of them but one come last.

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
        behind = view.text_mask & (view.image_mask.flip(1).cumsum(1).flip(1) == 0)
        question = torch.where(behind.any(1, keepdim=True), behind, view.text_mask)
        for row, image in enumerate(view.image_mask):
            states, text = view.hidden_states[row, image].float(), view.hidden_states[row, question[row]].float()
            # A sum points where the mean does, and is there without any text too.
            kept[row, image] = _most_diverse(states, _relevance(states, text.sum(0)), self.keep)
        return kept


def _relevance(states: Tensor, question: Tensor) -> Tensor:
    """Cosine to the question, scaled to lie between 0 and 1; 1 for all where it tells nothing apart."""
    cosines = normalize(states, dim=-1) @ normalize(question, dim=-1)
    if not len(cosines):
        return cosines
    low, high = cosines.aminmax()
    return (cosines - low + 1e-6) / (high - low + 1e-6)


def _most_diverse(states: Tensor, relevance: Tensor, keep: int) -> Tensor:
    """Mark `keep` states, each of which makes the determinant of the kernel of those marked as large as can be.

    With relevance r and cosines S the kernel is r_i S_ij r_j. A state multiplies the determinant by r_i squared times the
    part of its direction that no chosen one has; a Cholesky factor of S that grows with the choice keeps account of it.
    """
    chosen = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    directions = normalize(states, dim=-1)
    cosines = directions @ directions.T
    new = torch.ones_like(relevance)
    factor = cosines.new_zeros(min(keep, len(states)), len(states))
    for i in range(len(factor)):
        pick = (relevance**2 * new).masked_fill(chosen, -torch.inf).argmax()
        chosen[pick] = True
        factor[i] = (cosines[pick] - factor[:i, pick] @ factor[:i]) / new[pick].clamp(min=1e-5).sqrt()
        new = new - factor[i] ** 2
        new = new.masked_fill(new < 1e-5, 0)        # what rounding leaves of a direction that is used up
    return chosen
