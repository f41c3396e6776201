import pytest
import torch
from towers import check, kept, prompt

from dart.methods.holov import HoloV

# 0.6 in the first crop of two, 0.24 in the other
ATTENTION = torch.tensor([[0.16, 0.1, 0.3, 0.1, 0.1, 0.05, 0.06, 0.06, 0.07]])


def test_crops_share_by_attention():
    # bids of the first crop: 1.2, 0.4, 0.24, 0.17; of the second: 0.48, 0.16, 0.1
    for keep, stay in [(1, [1]), (2, [1, 7]), (3, [0, 1, 7]), (4, [0, 1, 2, 7]), (6, [0, 1, 2, 3, 5, 7])]:
        assert kept(HoloV(keep, crops=2, diversity=0.0), prompt(ATTENTION)) == stay


def test_crops_of_varied_tokens_get_more():
    same = torch.ones(4, 8)
    varied = torch.eye(8)[:4] + torch.tensor([0.0, 0.0, 1.0, 3.0])[:, None]
    even = torch.full((1, 9), 0.1)
    for crop, embeddings in ((1, torch.cat([same, varied])), (0, torch.cat([varied, same]))):
        view = prompt(even, embeddings=embeddings)
        stay = kept(HoloV(4, crops=2, diversity=2.0), view)
        assert sum(i // 4 == crop for i in stay) == 3
        stay = kept(HoloV(4, crops=2, diversity=0.0), view)
        assert sum(i // 4 == crop for i in stay) == 2


def test_shares_by_hand():
    """Of three crops of uneven size, in float64 and with loops."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.rand(1, 9, generator=generator)
    embeddings = torch.randn(8, 8, generator=generator)
    crops = [[0, 1, 2], [3, 4, 5], [6, 7]]
    spread = torch.zeros(8).double()
    for crop in crops:
        for i in crop:
            others = torch.stack([torch.cosine_similarity(embeddings[i].double(), embeddings[j].double(), dim=0)
                                  for j in crop if j != i])
            spread[i] = others.var(correction=0)
    attention = rows[0, 1:].double()
    scores = attention + 0.7 * spread * attention.mean() / spread.mean()
    bids = []
    for crop in crops:
        for rank, i in enumerate(sorted(crop, key=lambda i: -attention[i])):
            bids.append((-float(scores[crop].sum() / (rank + 0.5)), i))
    for keep in range(9):
        stay = sorted(i for _, i in sorted(bids)[:keep])
        assert kept(HoloV(keep, crops=3, diversity=0.7), prompt(rows, embeddings=embeddings)) == stay


def test_without_class_token_patches_attend():
    view = prompt(torch.full((1, 4), 0.25))
    view.vision.class_tokens = 0
    view.vision.noted[-1].weights[:] = torch.tensor([0.1, 0.2, 0.5, 0.2])
    assert kept(HoloV(1, crops=1), view) == [2]


def test_newlines_come_last():
    assert kept(HoloV(8), prompt(ATTENTION, newlines=(2, 6))) == [0, 1, 3, 4, 5, 6, 8, 9]


def test_as_every_method():
    check(HoloV)
    check(lambda keep: HoloV(keep, crops=5, diversity=1.0), padding="right", newlines=(4, 8))
    for wrong in (dict(crops=0), dict(diversity=-1.0)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HoloV(4, **wrong)
