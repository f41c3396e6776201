"""Duplication as mathematics: who repeats whom, how far the kept tokens reach, and what the paper's bound promises.

Shapes: tokens (..., n, d), pivots (..., p, d), a mask of kept tokens (..., n). Everything is computed in float32.
Definitions and lemmas are those of arXiv 2502.11494, its section on theory.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of `a` (..., n, d) with every row of `b` (..., m, d), as (..., n, m).

    The paper's duplication score. A row of zeros has no direction and scores 0.
    """
    return normalize(a.float(), dim=-1) @ normalize(b.float(), dim=-1).mT


def duplicates(tokens: Tensor, pivots: Tensor, epsilon: float | Tensor) -> Tensor:
    """Which tokens are epsilon-duplicates of which pivot, as bool (..., p, n): cosine above epsilon.

    `epsilon` is one number, or one for each pivot (..., p).
    """
    threshold = torch.as_tensor(epsilon, dtype=torch.float32, device=tokens.device)
    return cosine(pivots, tokens) > threshold[..., None]


def epsilon_per_pivot(tokens: Tensor, pivots: Tensor, kept: Tensor) -> Tensor:
    """The lowest cosine that any removed token has with each pivot, (..., p).

    In the paper epsilon is no constant: the budget sets one for each pivot. Every removed token is at least this
    much a duplicate of the pivot, and no higher number can be promised. Where nothing was removed it is 1.
    """
    return cosine(pivots, tokens).masked_fill(kept.unsqueeze(-2), 1.0).amin(-1)


def coverage_radius(tokens: Tensor, kept: Tensor) -> Tensor:
    """Distance from the worst served token to its nearest kept one, (...).

    This is the Hausdorff distance between all tokens and the kept ones, since the latter are a subset.
    Infinite where nothing is kept.
    """
    # the default rewrites |a - b|^2 as a matrix product, which leaves equal tokens a visible distance apart
    distances = torch.cdist(tokens.float(), tokens.float(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(~kept.unsqueeze(-2), torch.inf).amin(-1).amax(-1)


def paper_bound(epsilon: float | Tensor, norm: float | Tensor) -> Tensor:
    """Lemmas 1 and 2: removed tokens lie within sqrt(2 (1 - epsilon)) B of a kept one, all norms being at most B.

    Stated in the paper for any such norms; it holds for equal norms, or for epsilon up to 1/2, and not beyond
    (see `corrected_bound`).
    """
    epsilon = torch.as_tensor(epsilon, dtype=torch.float32)
    return (2 * (1 - epsilon)).clamp(min=0).sqrt() * norm


def corrected_bound(epsilon: float | Tensor, norm: float | Tensor, smallest: float | Tensor = 0.0) -> Tensor:
    """The same promise for norms that differ, from `smallest` (b) to `norm` (B).

    max(sqrt(2 (1 - epsilon)) B, sqrt(B^2 + b^2 - 2 epsilon b B)). Nothing lower can be promised: one term is the distance of
    two tokens of length B, the other that of a token of length b from one of length B, both at the angle whose cosine is
    epsilon. Without a smallest norm it is max(1, sqrt(2 (1 - epsilon))) B; where b >= (2 epsilon - 1) B it is the paper's.

    Raises
    ------
    ValueError
        If `smallest` is negative or above `norm`.
    """
    epsilon, norm, smallest = (torch.as_tensor(given, dtype=torch.float32) for given in (epsilon, norm, smallest))
    if (smallest < 0).any() or (smallest > norm).any():
        raise ValueError(f"smallest={smallest.tolist()} and norm={norm.tolist()}; give 0 <= smallest <= norm")
    mixed = (norm**2 + smallest**2 - 2 * epsilon * smallest * norm).clamp(min=0).sqrt()
    return torch.maximum(paper_bound(epsilon, norm), mixed)
