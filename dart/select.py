"""Which image tokens stay: pivots, duplication, claiming. Pure tensors; knows no model.

DART reads two things of every token: the *key* of one layer, whose L1 norm ranks the tokens that may become
pivots, and the *hidden state*, whose cosine to a pivot is the duplication of the token with it. A few pivots are
taken from the image and a few from the text behind it. Each pivot in turn claims the image tokens that duplicate
it least, among those that no other pivot has claimed; pivots of the image and claimed tokens stay.
"""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor
from torch.nn.functional import normalize

PIVOT_ORDERS = ("sorted", "norm", "released")


@torch.no_grad()
def dart_keep(
    hidden: Tensor,
    keys: Tensor,
    image_mask: Tensor,
    *,
    keep: int | Tensor | None = None,
    per_pivot: int | None = None,
    image_pivots: int = 4,
    text_pivots: int = 4,
    pivot_order: str = "sorted",
    pivot_scores: Tensor | None = None,
    padding_mask: Tensor | None = None,
) -> Tensor:
    """Mark the image tokens that stay, by duplication with a few pivots.

    Parameters
    ----------
    hidden : Tensor, float, (batch, length, hidden_size)
        States whose cosine is the duplication. The authors' code takes the output of the layer before the pruned
        one after the model's *final* norm (its learned weights change the cosine; the paper does not mention it).
    keys : Tensor, float, (batch, heads, length, head_dim)
        Keys of the layer before the pruned one, after RoPE; their L1 norm over all heads ranks the pivots (the paper's
        "K-norm"; L1 is what the authors' code takes).
    image_mask : Tensor, bool, (batch, length)
        True at image tokens. Rows may hold different numbers of them, or none.
    keep : int or Tensor (batch,), optional
        Exact budget: this many image tokens stay, pivots of the image counted inside. At or above the number that is
        there, all stay.
    per_pivot : int, optional
        The released budget: every pivot claims this many, so that ``image_pivots + (image_pivots + text_pivots) *
        per_pivot`` stay. Give exactly one of `keep` and `per_pivot`.
    image_pivots, text_pivots : int
        How many pivots each side gives, at most what is there (paper, caption of Table 8: 4 and 4). Text pivots come
        from text behind the last image token and only guide: text always stays.
    pivot_order : {"sorted", "norm", "released"}
        Who claims first: by position; by falling norm or score; or as the authors' Python ``set`` of positions iterates. The
        last is computed on the host and is there to reproduce their results.
    pivot_scores : Tensor, float, (batch, length), optional
        What ranks the pivots, highest first, in place of the keys' norms (paper, Table 8 tries others).
    padding_mask : Tensor, bool, (batch, length), optional
        True at padding, which is neither pivot nor candidate.

    Returns
    -------
    Tensor, bool, (batch, length)
        True at the image tokens that stay. Never waits for the device, except with ``pivot_order="released"``.

    Raises
    ------
    ValueError
        Shapes that do not fit, a negative budget or number of pivots, not exactly one budget, an unknown order.

    Notes
    -----
    With an exact budget, the tokens left after the image pivots are spread evenly over all pivots and the remainder goes
    to the first visited. ``keep <= image_pivots`` keeps the strongest image pivots. Missing text pivots hand their share
    on; a row left with no pivot at all takes its strongest image token as one. Ties go to the earlier position.
    """
    batch, length = _check(hidden, keys, image_mask, keep, per_pivot, image_pivots, text_pivots, pivot_order, pivot_scores,
                           padding_mask)
    # Python numbers enter through masked_fill, clamp and full_like: torch.where and torch.tensor would copy them to the
    # device, and wait for that.
    positions = torch.arange(length, device=hidden.device).expand(batch, length)
    real = torch.ones_like(image_mask) if padding_mask is None else ~padding_mask
    image = image_mask & real
    last_image = positions.masked_fill(~image, -1).amax(1, keepdim=True)
    text = real & (positions > last_image) & (last_image >= 0)

    n_image, n_text = image.sum(1), text.sum(1).clamp(max=text_pivots)
    budget = n_image if keep is None else n_image.minimum(keep) if isinstance(keep, Tensor) else n_image.clamp(max=min(keep, length))
    n_from_image = torch.full_like(n_image, image_pivots).masked_fill(n_text == 0, max(image_pivots, 1)).minimum(budget)

    scores = torch.linalg.vector_norm(keys.float(), ord=1, dim=(1, 3)) if pivot_scores is None else pivot_scores
    is_pivot = _strongest(scores, image, n_from_image) | _strongest(scores, text, n_text)
    most = min(max(image_pivots, 1) + text_pivots, length)
    order = _released_order(is_pivot, image, scores, real, most) if pivot_order == "released" else _order(
        scores if pivot_order == "norm" else -positions, is_pivot)[:, :most]

    n_pivots = n_from_image + n_text
    turn = torch.arange(most, device=hidden.device)
    if keep is None:
        quota = torch.full_like(order, min(per_pivot, length))
    else:
        share = budget - n_from_image
        each = share // n_pivots.clamp(min=1)
        quota = each[:, None] + (turn < (share - each * n_pivots)[:, None])
    quota = quota.masked_fill(turn >= n_pivots[:, None], 0)

    # Divided by the norms at the end: a copy of all states in unit length would take longer than everything else here.
    states = hidden.float()
    pivots = normalize(states.take_along_dim(order[..., None], dim=1), dim=-1)
    norms = torch.linalg.vector_norm(states, dim=-1).clamp(min=1e-12)
    duplication = pivots @ states.transpose(1, 2) / norms[:, None]             # (batch, pivots, length)

    candidates = image & ~is_pivot
    for i in range(most):
        candidates = candidates & ~_strongest(-duplication[:, i], candidates, quota[:, i])
    return image & ~candidates


def _order(scores: Tensor, among: Tensor) -> Tensor:
    """Positions by falling score, those outside `among` last; ties go to the earlier position."""
    lowest = torch.finfo(scores.dtype).min if scores.is_floating_point() else torch.iinfo(scores.dtype).min
    return scores.masked_fill(~among, lowest).argsort(dim=1, descending=True, stable=True)


def _strongest(scores: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Mark, in each row, the `count` highest of `scores` where `among` is true."""
    order = _order(scores, among)
    # Ranks and not marks are scattered: of marks, torch 2.13 compiles code for CPUs that loses some in batches.
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return (torch.empty_like(order).scatter(1, order, ranks) < count[:, None]) & among


def _released_order(is_pivot: Tensor, image: Tensor, scores: Tensor, real: Tensor, most: int) -> Tensor:
    """The order of the authors' code: a Python set, filled with image and then text pivots by falling norm, iterated."""
    starts = real.int().argmax(1).tolist()       # positions count from the first real token, whatever the padding
    rows = []
    for row, start in enumerate(starts):
        of_image, of_text = (
            positions[scores[row, positions].argsort(descending=True, stable=True)].tolist()
            for positions in ((is_pivot & image)[row].nonzero().flatten(), (is_pivot & ~image)[row].nonzero().flatten())
        )
        visited = [p + start for p in set([p - start for p in of_image + of_text])]
        rows.append(visited + [0] * (most - len(visited)))
    return torch.tensor(rows, device=is_pivot.device)


def _check(hidden, keys, image_mask, keep, per_pivot, image_pivots, text_pivots, pivot_order, pivot_scores, padding_mask):
    if hidden.ndim != 3:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; give (batch, length, hidden_size)")
    batch, length, _ = hidden.shape
    if keys.ndim != 4 or (keys.shape[0], keys.shape[2]) != (batch, length):
        raise ValueError(
            f"keys has shape {tuple(keys.shape)}; give (batch, heads, length, head_dim) with batch={batch}, length={length}"
        )
    for name, mask in (("image_mask", image_mask), ("padding_mask", padding_mask)):
        if mask is not None and (mask.shape != (batch, length) or mask.dtype != torch.bool):
            raise ValueError(
                f"{name} is {mask.dtype} of shape {tuple(mask.shape)}; give bool (batch, length) = ({batch}, {length})"
            )
    if (keep is None) == (per_pivot is None):
        raise ValueError(f"keep={keep}, per_pivot={per_pivot}; give exactly one of them")
    for name, value in (("keep", keep), ("per_pivot", per_pivot), ("image_pivots", image_pivots), ("text_pivots", text_pivots)):
        if value is not None and not isinstance(value, Tensor) and (not isinstance(value, Integral) or value < 0):
            raise ValueError(f"{name}={value!r}; give a whole number, 0 or more")
    if isinstance(keep, Tensor) and keep.shape != (batch,):
        raise ValueError(f"keep has shape {tuple(keep.shape)}; give one number, or one for each row: ({batch},)")
    if pivot_scores is not None and pivot_scores.shape != (batch, length):
        raise ValueError(f"pivot_scores has shape {tuple(pivot_scores.shape)}; give (batch, length) = ({batch}, {length})")
    if pivot_order not in PIVOT_ORDERS:
        raise ValueError(f"pivot_order={pivot_order!r}; give one of {', '.join(map(repr, PIVOT_ORDERS))}")
    return batch, length
