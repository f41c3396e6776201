import pytest
import torch
from towers import check, kept, prompt

from dart.methods.visionzip import VisionZip

ATTENTION = torch.tensor([[0.1, 0.02, 0.25, 0.04, 0.2, 0.06, 0.08, 0.1, 0.15]])


def features(*degrees):
    """Keys of two heads that point elsewhere, their mean at these angles."""
    angles = torch.tensor([0.0, *degrees]).deg2rad()
    mean = torch.stack([angles.cos(), angles.sin()], 1)
    apart = torch.stack([angles.sin(), torch.linspace(-3, 3, len(angles))], 1)
    return torch.cat([mean + apart, mean - apart], 1)[None]


def test_dominant_stay_as_they_are_and_the_others_are_merged_into_contextual_ones():
    # Patches 1, 3 and 7 dominate; of 0, 2, 4, 5, 6 every second is contextual, two in all: 0 and 4; 2 is like 4, 5 and 6 like 0.
    view = prompt(ATTENTION, features=features(0, 9, 80, 9, 90, 10, 20, 9), embeddings=torch.arange(1.0, 9)[:, None].expand(8, 8))
    mask, states = VisionZip(5, contextual=0.4).select(view)
    assert mask[0, 2:10].nonzero().flatten().tolist() == [0, 1, 3, 4, 7]
    now = states[0, 2:10, 0]
    assert now[[1, 3, 7]].tolist() == [2, 4, 8]
    assert now[[0, 4]].tolist() == [1 + (6 + 7) / 2, 5 + 3]


def test_into_which_nothing_is_merged_stays_as_it_is():
    view = prompt(ATTENTION, features=features(0, 9, 20, 9, 180, 30, -20, 9))
    mask, states = VisionZip(5, contextual=0.4).select(view)
    assert mask[0, 6] and not torch.equal(states[0, 2], view.hidden_states[0, 2])
    assert torch.equal(states[0, 6], view.hidden_states[0, 6])


@pytest.mark.parametrize(("keep", "contextual"), [(64, 10), (128, 20), (192, 30)])
def test_paper_splits_the_budget_like_this(keep, contextual):
    assert round(keep * VisionZip(keep).contextual) == contextual


def test_no_contextual_token_is_plain_attention():
    view = prompt(ATTENTION)
    assert kept(VisionZip(3, contextual=0.0), view) == [1, 3, 7]
    assert torch.equal(VisionZip(3, contextual=0.0).select(view)[1], view.hidden_states)


def test_without_class_token_patches_attend():
    view = prompt(torch.full((1, 4), 0.25))
    view.vision.class_tokens = 0
    view.vision.noted[-1].weights[:] = torch.tensor([0.1, 0.2, 0.5, 0.2])
    assert kept(VisionZip(1), view) == [2]


def test_as_every_method():
    check(VisionZip)
    check(lambda keep: VisionZip(keep, contextual=0.5), padding="right", newlines=(4, 8))
    with pytest.raises(ValueError, match="contextual=-1"):
        VisionZip(4, contextual=-1)
