import pytest
import torch
from towers import check, kept, prompt

from dart.methods.prumerge import PruMerge

ATTENTION = torch.tensor([[0.03, 0.05, 0.4, 0.06, 0.07, 0.05, 0.25, 0.04, 0.05]])


def features(*degrees):
    angles = torch.tensor([0.0, *degrees]).deg2rad()
    return torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles), torch.zeros_like(angles)], 1)[None]


def test_a_kept_token_takes_in_its_neighbours_by_their_attention():
    # 1 is nearest to 0 and then 5, 5 to 4 and then 6: 1 and 5 stay, and what stays is a neighbour too.
    keys = features(0, 10, 70, 160, 34, 31, 200, 230)
    view = prompt(ATTENTION, features=keys, embeddings=torch.tensor([1.0, 10, 2, 3, 4, 20, 5, 6])[:, None].expand(8, 8))
    mask, states = PruMerge(2, neighbours=2).select(view)
    assert mask[0, 2:10].nonzero().flatten().tolist() == [1, 5]
    assert states[0, 3, 0].item() == pytest.approx(10 + 0.05 * 1 + 0.25 * 20)
    assert states[0, 7, 0].item() == pytest.approx(20 + 0.05 * 4 + 0.4 * 10)


def test_without_a_budget_what_stands_out_stays():
    assert kept(PruMerge(None), prompt(ATTENTION)) == [1, 5]
    assert kept(PruMerge(None), prompt(ATTENTION, newlines=(3,))) == [1, 6]
    assert kept(PruMerge(None), prompt(torch.full((1, 9), 1 / 9))) == []
    # by hand: the quartiles of 0.1 to 0.7 and x are 0.275 and 0.625, so that x stands out above 1.15
    for last, stands_out in [(1.14, []), (1.16, [7])]:
        view = prompt(torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, last]]))
        assert kept(PruMerge(None), view) == stands_out


def test_without_a_budget_every_picture_is_judged_by_itself():
    both = torch.cat([ATTENTION, 0.001 * ATTENTION.roll(1, 1)])
    assert kept(PruMerge(None), prompt(both)) == [1, 5, 10, 14]
    with pytest.raises(ValueError, match="depends on the picture"):
        PruMerge(None).kept(8, 4)


def test_pictures_do_not_mix():
    both, keys = torch.cat([ATTENTION, ATTENTION]), torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    embeddings = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    _, states = PruMerge(4, neighbours=3).select(prompt(both, features=keys, embeddings=embeddings))
    _, alone = PruMerge(2, neighbours=3).select(prompt(both[:1], features=keys[:1], embeddings=embeddings[:8]))
    torch.testing.assert_close(states[0, 2:10], alone[0, 2:10])


def test_as_every_method():
    check(PruMerge)
    check(lambda keep: PruMerge(keep, neighbours=3), padding="right", newlines=(4, 8))
    for wrong in (dict(keep=-1), dict(keep=4, neighbours=-2)):
        with pytest.raises(ValueError, match="give a whole number"):
            PruMerge(**wrong)
