import pytest
import torch
from towers import check, kept, prompt

from dart.methods.vispruner import VisPruner

ATTENTION = torch.tensor([[0.1, 0.25, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02]])            # falling from patch to patch


def directions(*degrees):
    angles = torch.tensor([0.0, *degrees]).deg2rad()
    return torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles), torch.zeros_like(angles)], 1)[None]


def test_some_are_important_and_of_the_others_duplicates_go():
    # After patches 0 and 1: halves (2, 4, 6) and (3, 5, 7). 2 lies 1 degree from 5, 4 is 20 from 3, 6 is 90 from 3: 2 goes first.
    view = prompt(ATTENTION, features=directions(0, 0, 100, 0, 20, 101, -90, 200))
    assert kept(VisPruner(7, at_once=1, important=0.3), view) == [0, 1, 3, 4, 5, 6, 7]
    assert kept(VisPruner(7, at_once=1, important=1.0), view) == [0, 1, 2, 3, 4, 5, 6]


def test_halves_are_made_anew_after_each_removal():
    view = prompt(ATTENTION, features=directions(0, 0, 100, 0, 20, 101, -90, 200))
    assert kept(VisPruner(6, at_once=1, important=0.5), view) == _by_hand(view, 6, 1)
    assert kept(VisPruner(5, at_once=1, important=0.5), view) == _by_hand(view, 5, 1)
    assert kept(VisPruner(3, at_once=2, important=0.5), view) == _by_hand(view, 3, 2)


def _by_hand(view, keep, at_once):
    """The same with lists."""
    of = view.vision.hidden_states[0, 1:].double()
    left = list(range(keep // 2, 8))                                         # ATTENTION falls, so rank is position
    while len(left) > keep - keep // 2:
        half, other = left[::2], left[1::2]
        like = {i: max(float(torch.cosine_similarity(of[i], of[j], dim=0)) for j in other) for i in half}
        gone = min(at_once, len(left) - (keep - keep // 2), len(half))
        left = sorted(half, key=lambda i: -like[i])[gone:] + other
    return sorted([*range(keep // 2), *left])


def test_without_class_token_patches_attend():
    view = prompt(torch.full((1, 4), 0.25))
    view.vision.class_tokens = 0
    view.vision.patches = view.vision.patches.masked_fill(~view.image_mask, -1)
    view.vision.noted[-1].weights[:] = torch.tensor([0.1, 0.2, 0.5, 0.2])
    assert kept(VisPruner(1, important=1.0), view) == [2]


def test_newlines_come_last():
    assert kept(VisPruner(8), prompt(ATTENTION, newlines=(2, 6))) == [0, 1, 3, 4, 5, 6, 8, 9]


def test_as_every_method():
    check(VisPruner)
    check(lambda keep: VisPruner(keep, at_once=1, important=0.3), padding="right", newlines=(4, 8))
    with pytest.raises(ValueError, match="important=1.5"):
        VisPruner(4, important=1.5)
    with pytest.raises(ValueError, match="at_once=0"):
        VisPruner(4, at_once=0)
