import pytest
import torch
from towers import check, kept, prompt

from dart.methods.fastervlm import FasterVLM

# what a class token pays to itself, then to eight patches
ROWS = torch.tensor([[0.3, 0.1, 0.05, 0.2, 0.15, 0.02, 0.08, 0.06, 0.04]])


def test_the_most_attended_stay():
    assert kept(FasterVLM(3), prompt(ROWS)) == [0, 2, 3]


def test_heads_are_averaged():
    view = prompt(torch.ones(1, 3))
    view.vision.noted[-1].weights[0, :, 0] = torch.tensor([[0.1, 0.5, 0.4], [0.5, 0.1, 0.4]])
    assert kept(FasterVLM(1), view) == [1]


def test_pictures_share_the_budget_evenly():
    rows = torch.tensor([[0.96, 0.01, 0.01, 0.01, 0.01], [0.0, 0.1, 0.2, 0.3, 0.4]])
    assert kept(FasterVLM(4), prompt(rows)) == [0, 1, 6, 7]


def test_newlines_come_last():
    view = prompt(ROWS, newlines=(2, 6))                      # image tokens 2 and 7
    assert kept(FasterVLM(8), view) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert kept(FasterVLM(9), view) == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_as_every_method():
    check(FasterVLM)
    check(FasterVLM, padding="right", newlines=(4, 8))
    with pytest.raises(ValueError, match="keep=-1"):
        FasterVLM(-1)
    assert FasterVLM(3).kept(8, 4) == [3] * 4


def test_a_tower_without_class_token_is_refused():
    view = prompt(ROWS)
    view.vision.class_tokens = 0
    with pytest.raises(ValueError, match="class token"):
        FasterVLM(3).select(view)
