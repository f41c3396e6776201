from math import exp, log

import pytest
import torch
from towers import check, kept, prompt, tiles

from dart.methods.globalcom2 import GlobalCom2

# attention of the class tokens of the thumbnail and of two tiles to themselves and to 2 x 2 patches
RIGHT = torch.tensor([[0.2, 0.05, 0.4, 0.1, 0.25], [0.2, 0.1, 0.2, 0.3, 0.2], [0.2, 0.3, 0.1, 0.2, 0.2]])


def test_the_thumbnail_commands_how_much_of_each_tile_stays():
    # Even: the budget of 6 goes two and two and two. Cold: all the more goes to the right tile, and 1 - 1/2 to the left.
    even = kept(GlobalCom2(6, temperature=1e9), tiles(RIGHT))
    assert [sum(i in even for i in part) for part in ((0, 1, 2, 3), (4, 5, 9, 10), (6, 7, 11, 12))] == [2, 2, 2]
    cold = kept(GlobalCom2(6, temperature=1e-3), tiles(RIGHT))
    assert [sum(i in cold for i in part) for part in ((0, 1, 2, 3), (4, 5, 9, 10), (6, 7, 11, 12))] == [2, 1, 3]


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_by_hand(seed, cut):
    """With loops; of the tiles, each with two columns, `cut` are cut off on the outer side."""
    rows = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) + 0.01
    thumbnail = [[log(rows[0, 1]), log(rows[0, 2])], [log(rows[0, 3]), log(rows[0, 4])]]
    own, guide = {}, {}
    for row in range(2):
        for column in range(4 - 2 * cut):
            right = min(max((column + 0.5) * 2 / (4 - 2 * cut) - 0.5, 0), 1)
            rank = 4 + row * (5 - 2 * cut) + column
            guide[rank] = (1 - right) * thumbnail[row][0] + right * thumbnail[row][1]
            own[rank] = log(rows[1 + (column + cut) // 2, 1 + 2 * row + (column + cut) % 2])
    parts = [[i for i in own if (i - 4) % (5 - 2 * cut) // (2 - cut) == tile] for tile in range(2)]
    shown = [2 * sum(guide[i] for i in part) / len(part) for part in parts]
    softmax = [exp(one / 3) / sum(exp(other / 3) for other in shown) for one in shown]
    weights = [4.0] + [len(part) * (1 + more - 1 / 2) for part, more in zip(parts, softmax)]
    scores = dict(enumerate(thumbnail[0] + thumbnail[1]))
    for part in parts:
        norms = [sum(of[i] ** 2 for i in part) ** 0.5 for of in (own, guide)]
        scores |= {i: own[i] / norms[0] + guide[i] / norms[1] for i in part}
    bids = [(weight / (rank + 0.5), i)
            for weight, part in zip(weights, [range(4), *parts])
            for rank, i in enumerate(sorted(part, key=lambda i: -scores[i]))]
    for keep in range(len(bids)):
        stay = [i for _, i in sorted(bids, reverse=True)[:keep]]
        assert kept(GlobalCom2(keep, temperature=3.0), tiles(rows, cut=cut)) == sorted(stay)


def test_without_tiles_a_picture_is_its_own_thumbnail():
    view = prompt(torch.tensor([[0.3, 0.1, 0.05, 0.2, 0.35]]), grid=torch.zeros(1, 7, 3, dtype=torch.long))
    assert kept(GlobalCom2(2), view) == [2, 3]


@pytest.mark.parametrize("keep", [0, 1, 3, 6, 11, 12, 13, 14, 20])
def test_budget_is_met_with_tiles_and_newlines_come_last(keep):
    for dtype in (torch.float32, torch.float16):
        stay = kept(GlobalCom2(keep, temperature=0.01), tiles(RIGHT, dtype=dtype))
        assert len(stay) == min(keep, 14)
        assert keep >= 13 or not {8, 13} & set(stay)


def test_as_every_method():
    class Flat(GlobalCom2):
        def select(self, view):
            view.find_grid = lambda: view.vision.views[..., None].expand(-1, -1, 3)      # every picture a view of its own
            return super().select(view)

    check(Flat)
    with pytest.raises(ValueError, match="temperature=0"):
        GlobalCom2(4, temperature=0)
