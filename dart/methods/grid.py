"""Grid: the control that spreads what it keeps evenly over the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dart.methods.base import Method, View, check_budget


@dataclass(frozen=True)
class Grid(Method):
    """Keep image tokens on an even lattice without looking at what they hold (a control of ours).

    Signal: none; where a token lies.
    Place: before decoder layer 2.
    Attention: none.
    Source: no paper.
    Licence of the original: none; written for this project.
    Differs: nothing to differ from. A view (a picture, a frame, the joined tiles) gets its share of the budget by its number
        of tokens. In it, as many rows as fit the shape, at equal distances, and in each of them equally many tokens, but for
        one more where the division leaves a remainder. Tokens that lie nowhere (newlines of LLaVA-NeXT) come last, the
        earlier first.

    Parameters
    ----------
    keep : int
        This many image tokens of every sample stay, all if there are fewer.
    layer : int
        First decoder layer that sees the short sequence; default 2.

    Raises
    ------
    ValueError
        A negative budget; where tokens lie is not known for the family.
    """

    keep: int

    def __post_init__(self):
        check_budget(keep=self.keep)

    def select(self, view: View) -> Tensor:
        kept = torch.zeros_like(view.image_mask)
        for row, (image, grid) in enumerate(zip(view.image_mask, view.grid)):
            placed = (image & (grid[:, 0] >= 0)).nonzero().flatten()
            numbers, sizes = grid[placed, 0].unique(return_counts=True)
            ends = (sizes.cumsum(0) * min(self.keep, len(placed)) // max(len(placed), 1)).tolist()
            for number, start, end in zip(numbers, [0, *ends], ends):
                tokens = placed[grid[placed, 0] == number]
                lines, places = grid[tokens, 1], grid[tokens, 2]
                tokens = tokens[(lines * (places.max() + 1) + places).argsort()]
                n_rows = len(lines.unique())
                kept[row, tokens[even_lattice(n_rows, len(tokens) // n_rows, end - start)]] = True
            nowhere = (image & (grid[:, 0] < 0)).nonzero().flatten()
            kept[row, nowhere[: max(self.keep - len(placed), 0)]] = True
        return kept


def even_lattice(rows: int, columns: int, count: int) -> list[int]:
    """Choose `count` of `rows` x `columns` places, evenly spread; they are numbered row by row.

    >>> even_lattice(4, 4, 4)
    [5, 7, 13, 15]
    """
    if count == 0:
        return []
    lines = min(max(round((count * rows / columns) ** 0.5), -(-count // columns)), rows, count)
    chosen = []
    for i in range(lines):
        line = (2 * i + 1) * rows // (2 * lines)
        inside = count * (i + 1) // lines - count * i // lines
        chosen += [line * columns + (2 * j + 1) * columns // (2 * inside) for j in range(inside)]
    return chosen
