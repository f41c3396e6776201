import pytest
import torch
from towers import check, kept, prompt, tiles

from dart.methods.hired import HiRED

# what the class tokens of the thumbnail and of two tiles pay to themselves and to 2 x 2 patches
LATE = torch.tensor([[0.2, 0.1, 0.4, 0.2, 0.1], [0.2, 0.1, 0.2, 0.3, 0.2], [0.2, 0.3, 0.2, 0.2, 0.1]])
LEFT = torch.tensor([[0.2, 0.4, 0.0, 0.4, 0.0], [0.2] * 5, [0.2] * 5])       # the thumbnail sees something on the left


def test_half_goes_to_the_thumbnail_and_the_rest_where_its_early_attention_is():
    # interpolated to four columns the left half of the thumbnail is 0.4, 0.3 and the right half 0.1, 0: shares of 7 to 1
    assert kept(HiRED(4), tiles(LATE, early=LEFT)) == [1, 2, 5, 9]
    assert kept(HiRED(4), tiles(LATE, early=LEFT[:, [0, 2, 1, 4, 3]])) == [1, 2, 6, 7]


def test_a_part_of_one_leaves_tiles_for_what_the_thumbnail_cannot_hold():
    assert kept(HiRED(4, thumbnail_share=1.0), tiles(LATE, early=LEFT)) == [0, 1, 2, 3]
    assert kept(HiRED(4, thumbnail_share=0.0), tiles(LATE, early=LEFT))[:3] == [4, 5, 9]
    assert len(kept(HiRED(6, thumbnail_share=1.0), tiles(LATE, early=LEFT))) == 6


@pytest.mark.parametrize("keep", [0, 1, 3, 6, 11, 12, 13, 14, 20])
def test_budget_is_met_with_tiles_and_newlines_come_last(keep):
    for dtype in (torch.float32, torch.float16):
        stay = kept(HiRED(keep), tiles(LATE, early=LEFT, dtype=dtype))
        assert len(stay) == min(keep, 14)
        assert keep >= 13 or not {8, 13} & set(stay)


def test_without_tiles_the_most_attended_stay():
    view = prompt(torch.tensor([[0.3, 0.1, 0.05, 0.2, 0.35]]), grid=torch.zeros(1, 7, 3, dtype=torch.long))
    assert kept(HiRED(2), view) == [2, 3]


def test_as_every_method():
    class Flat(HiRED):
        def select(self, view):
            view.find_grid = lambda: view.vision.views[..., None].expand(-1, -1, 3)      # every picture a view of its own
            return super().select(view)

    check(Flat)
    with pytest.raises(ValueError, match="thumbnail_share=2"):
        HiRED(4, thumbnail_share=2)
