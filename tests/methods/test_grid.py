"""Grid: lattices drawn by hand, evenness, newlines, several views."""

import pytest
import torch
import unequal
from views import view

from dart.methods.grid import Grid, even_lattice


def draw(rows, columns, count):
    chosen = even_lattice(rows, columns, count)
    return ["".join("x" if r * columns + c in chosen else "." for c in range(columns)) for r in range(rows)]


def test_lattices_by_hand():
    assert draw(4, 4, 4) == ["....", ".x.x", "....", ".x.x"]
    assert draw(2, 8, 4) == ["........", ".x.x.x.x"]
    assert draw(6, 3, 2) == ["...", ".x.", "...", "...", ".x.", "..."]
    assert draw(3, 3, 5) == ["x.x", "...", "xxx"]


@pytest.mark.parametrize("rows, columns", [(1, 1), (5, 5), (12, 12), (3, 17), (17, 3), (1, 9)])
def test_exact_and_even(rows, columns):
    for count in range(1, rows * columns + 1):
        places = torch.tensor(even_lattice(rows, columns, count))
        assert len(places.unique()) == count and 0 <= places.min() and places.max() < rows * columns
        per_row = (places // columns).bincount(minlength=rows)
        used = per_row[per_row > 0]
        assert used.max() - used.min() <= 1
        lines = per_row.nonzero().flatten()
        assert len(lines) < 2 or lines.diff().max() - lines.diff().min() <= 1
        for line in lines:
            gaps = (places[places // columns == line] % columns).diff()
            assert len(gaps) < 2 or gaps.max() - gaps.min() <= 1


def test_views_share_by_size_and_newlines_come_last():
    """A base view of 2 x 2 and tiles of 4 x 2 with a newline behind every row, whose tokens stand among the others."""
    where = [(0, r, c) for r in range(2) for c in range(2)]
    for r in range(4):
        where += [(1, r, 0), (1, r, 1), (-1, -1, -1)]
    grid = torch.tensor([[(-1, -1, -1), *where, (-1, -1, -1)]])
    v = view(torch.zeros(1, 18, 3), slice(1, 17), grid=grid)
    newlines = [7, 10, 13, 16]
    for keep in range(18):
        kept = Grid(keep=keep).select(v)[0]
        assert kept.sum() == min(keep, 16)
        assert kept[newlines].tolist() == [i < keep - 12 for i in range(4)]
        if keep <= 12:
            assert kept[1:5].sum() == 4 * keep // 12
        assert not kept[[0, 17]].any()
    assert Grid(keep=3).select(v)[0].nonzero().flatten().tolist() == [4, 9, 15]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("side", ["left", "right"])
def test_budgets_and_batches(side, dtype):
    singles = unequal.alone(dtype=dtype)
    batch = unequal.together(singles, side)
    for keep in (0, 1, 4, 9, 17, 99):
        kept = Grid(keep=keep).select(batch)
        assert kept.sum(1).tolist() == batch.image_mask.sum(1).clamp(max=keep).tolist()
        for got, single in zip(unequal.real(kept, batch), singles):
            assert torch.equal(got, Grid(keep=keep).select(single)[0])
    assert torch.equal(Grid(keep=99).select(batch), batch.image_mask)


def test_it_needs_to_know_where_tokens_lie():
    with pytest.raises(ValueError, match="where the tokens lie is not known here"):
        Grid(keep=1).select(view(torch.zeros(1, 4, 2), slice(0, 3)))
    with pytest.raises(ValueError, match="keep=-1; give a whole number, 0 or more"):
        Grid(keep=-1)
