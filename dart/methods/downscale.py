"""Downscale: the control that shows the model a smaller picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt

from dart.methods.base import Method, NoPlan, check_budget


@dataclass(frozen=True)
class Downscale(Method):
    """Scale the picture down until it makes no more tokens than the budget (a control of ours).

    Signal: none.
    Place: the picture, before the vision tower.
    Attention: none.
    Source: no paper.
    Licence of the original: none; written for this project.
    Differs: nothing to differ from. `keep` counts per picture, and is met where it is a product of rows and columns that
        distort the shape of the picture by no more than a factor of two; else the nearest number below it that is one: 64 is
        8 x 8, 128 is 8 x 16, 127 becomes 126 = 9 x 14. Of several pairs the one nearest to the shape is taken, and of two
        equally near the one with fewer rows. A picture so narrow that every pair distorts it more is distorted least.

    Parameters
    ----------
    keep : int
        At most this many patches of every picture, 1 or more. Pictures that have no more are left alone.

    Raises
    ------
    ValueError
        A negative budget, or none at all: a picture cannot be scaled to nothing.
    """

    keep: int

    layer: int = field(default=0, init=False, repr=False)  # what the tower lost is gone from there on

    reads_tower = True

    def __post_init__(self):
        check_budget(keep=self.keep)
        if self.keep == 0:
            raise ValueError("keep=0; a picture cannot be scaled to nothing, give keep=1 or more")

    def places(self, n_layers: int) -> tuple[int, ...]:
        return ()

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        """Image tokens that each decoder layer sees of one square picture."""
        side = isqrt(image_tokens)
        if side * side != image_tokens:
            raise NoPlan(
                f"how many of {image_tokens} tokens Downscale keeps depends on the shape of the picture, which is not square; "
                "measure it with a Report"
            )
        rows, columns = self.resize(side, side) or (side, side)
        return [rows * columns] * n_layers

    def resize(self, rows: int, columns: int) -> tuple[int, int] | None:
        if self.keep >= rows * columns:
            return None
        pairs = ((r, c) for r in range(1, min(rows, self.keep) + 1) for c in range(1, min(columns, self.keep // r) + 1))

        def rank(pair):
            sides = pair[0] * columns, pair[1] * rows
            stretch = max(sides) / min(sides)
            return max(stretch, 2), -pair[0] * pair[1], stretch, pair[0]

        return min(pairs, key=rank)
