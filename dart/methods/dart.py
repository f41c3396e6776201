"""DART: keep what duplicates a few pivots least."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from dart.methods.base import Method, View, check_budget
from dart.select import PIVOT_ORDERS, dart_keep

PIVOT_RULES = (
    "key-norm-max", "key-norm-min", "value-norm-max", "value-norm-min", "attention-max", "attention-min", "random",
)


@dataclass(frozen=True)
class DART(Method):
    """Duplication-Aware Reduction of Tokens (Wen et al., EMNLP 2025, arXiv 2502.11494).

    Signal: cosine to a few pivots, chosen by the L1 norm of their keys or by another `pivot_rule`.
    Place: before decoder layer 2; any layer will do, 0 prunes the input embeddings.
    Attention: none; for the pivot rules "attention-max" and "attention-min" the row of the last token, layer before.
    Source: "Stop Looking for 'Important Tokens' in Multimodal Language Models: Duplication Matters More", arXiv 2502.11494,
        section 3; pivot rules Table 8. The L1 norm, the final norm before the cosine and the order of claims are known from
        the authors' code only.
    Licence of the original: Apache-2.0; re-implemented from the paper.
    Differs: `keep` and `reduction_ratio` are met exactly, the authors' budget is `per_pivot`. The paper leaves open what
        attention ranks pivots by: here the attention that the last token of the prompt pays, mean over heads. Norms of
        values are L1 norms, as those of keys. A rule picks image and text pivots alike.

    Parameters
    ----------
    keep : int
        Exact budget: this many image tokens of every sample stay, pooled over its images.
    per_pivot : int
        Released budget, as the authors' code: ``image_pivots + (image_pivots + text_pivots) * per_pivot`` stay.
    reduction_ratio : float
        Exact budget as the fraction *removed* of the sample's image tokens, rounded to whole tokens: 0.889 of 576 keeps 64.
        Give exactly one of the three budgets.
    image_pivots, text_pivots : int
        Default 4 and 4 (paper, caption of Table 8).
    pivot_order : {"sorted", "norm", "released"}
        Who claims first; see :func:`dart.select.dart_keep`.
    pivot_rule : {"key-norm-max", "key-norm-min", "value-norm-max", "value-norm-min", "attention-max", "attention-min", "random"}
        Which tokens become pivots (paper, Table 8).
    seed : int
        Of the draw of ``pivot_rule="random"``, 0 or more. It counts a sample's tokens without padding: a sample has the same
        pivots alone and in a batch.
    layer : int
        First decoder layer that sees the short sequence; default 2.

    Raises
    ------
    ValueError
        Not exactly one budget, a negative number, no pivot at all, an unknown order or rule; rules by attention at layer 0.
    """

    keep: int | None = None
    per_pivot: int | None = None
    reduction_ratio: float | None = None
    image_pivots: int = field(default=4, kw_only=True)
    text_pivots: int = field(default=4, kw_only=True)
    pivot_order: str = field(default="sorted", kw_only=True)
    pivot_rule: str = field(default="key-norm-max", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self):
        check_budget(keep=self.keep, per_pivot=self.per_pivot, reduction_ratio=self.reduction_ratio)
        pivots = self.image_pivots, self.text_pivots
        if not all(isinstance(number, Integral) and number >= 0 for number in pivots) or sum(pivots) == 0:
            raise ValueError(
                f"image_pivots={self.image_pivots}, text_pivots={self.text_pivots}; give whole numbers, 0 or more of each and at "
                "least one in all"
            )
        for name, known in (("pivot_order", PIVOT_ORDERS), ("pivot_rule", PIVOT_RULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; give one of {', '.join(map(repr, known))}")
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r}; give a whole number, 0 or more")

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        """Image tokens that each decoder layer sees; of a released budget with all text pivots found."""
        stays = self._keep(torch.tensor([image_tokens]))
        if self.per_pivot is not None:
            stays = self.image_pivots + (self.image_pivots + self.text_pivots) * self.per_pivot
        return [image_tokens] * self.layer + [min(int(stays), image_tokens)] * (n_layers - self.layer)

    def select(self, view: View) -> Tensor:
        return dart_keep(
            view.final_norm(view.hidden_states),        # not the cached property, whose lock torch.compile cannot trace in Python 3.11
            view.keys,
            view.image_mask,
            keep=self._keep(view.image_mask.sum(1)),
            per_pivot=self.per_pivot,
            image_pivots=self.image_pivots,
            text_pivots=self.text_pivots,
            pivot_order=self.pivot_order,
            pivot_scores=self._pivot_scores(view),
            padding_mask=view.padding_mask,
        )

    def _keep(self, image_tokens: Tensor) -> int | Tensor | None:
        if self.reduction_ratio is None:
            return self.keep
        return (image_tokens * (1 - self.reduction_ratio)).round().long()

    def _pivot_scores(self, view: View) -> Tensor | None:
        if self.pivot_rule == "key-norm-max":
            return None
        if self.pivot_rule == "random":
            # One double is one step of the generator: the first n of a longer draw are the draw of n.
            drawn = torch.from_numpy(np.random.default_rng(self.seed).random(view.padding_mask.shape[1]))
            rank = ((~view.padding_mask).cumsum(1) - 1).clamp(min=0)
            return drawn.to(rank.device)[rank]
        signal, _, end = self.pivot_rule.rpartition("-")
        if signal == "attention":
            scores = view.attention(view.last_token).mean((1, 2))
        else:
            read = view.keys if signal == "key-norm" else view.values
            scores = torch.linalg.vector_norm(read.float(), ord=1, dim=(1, 3))
        return scores if end == "max" else -scores
