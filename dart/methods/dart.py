"""DART: keep what duplicates a few pivots least."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

from torch import Tensor

from dart.methods.base import Method, View, check_budget
from dart.select import PIVOT_ORDERS, dart_keep


@dataclass(frozen=True)
class DART(Method):
    """Duplication-Aware Reduction of Tokens (Wen et al., EMNLP 2025, arXiv 2502.11494).

    Signal: cosine to a few pivots, chosen by the L1 norm of their keys. Place: at a layer. Needs no attention map.

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
    layer : int
        First decoder layer that sees the short sequence; default 2.

    Raises
    ------
    ValueError
        Not exactly one budget, a negative number, no pivot at all, an unknown order.
    """

    keep: int | None = None
    per_pivot: int | None = None
    reduction_ratio: float | None = None
    image_pivots: int = field(default=4, kw_only=True)
    text_pivots: int = field(default=4, kw_only=True)
    pivot_order: str = field(default="sorted", kw_only=True)

    def __post_init__(self):
        check_budget(keep=self.keep, per_pivot=self.per_pivot, reduction_ratio=self.reduction_ratio)
        pivots = self.image_pivots, self.text_pivots
        if not all(isinstance(number, Integral) and number >= 0 for number in pivots) or sum(pivots) == 0:
            raise ValueError(
                f"image_pivots={self.image_pivots}, text_pivots={self.text_pivots}; give whole numbers, 0 or more of each and at "
                "least one in all"
            )
        if self.pivot_order not in PIVOT_ORDERS:
            raise ValueError(f"pivot_order={self.pivot_order!r}; give one of {', '.join(map(repr, PIVOT_ORDERS))}")

    def select(self, view: View) -> Tensor:
        keep = self.keep
        if self.reduction_ratio is not None:
            keep = (view.image_mask.sum(1) * (1 - self.reduction_ratio)).round().long()
        return dart_keep(
            view.normed_hidden_states,
            view.keys,
            view.image_mask,
            keep=keep,
            per_pivot=self.per_pivot,
            image_pivots=self.image_pivots,
            text_pivots=self.text_pivots,
            pivot_order=self.pivot_order,
            padding_mask=view.padding_mask,
        )
