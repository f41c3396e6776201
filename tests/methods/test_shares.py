import pytest
import torch

from dart.methods.shares import keep_shared, rank_within, size_of_part, to_be_cut

PARTS = torch.tensor([[-1, 0, 0, 1, 0, 1, 1, 1], [2, 2, 2, 2, 2, 3, 3, -1]])
SCORES = torch.tensor([[9.0, 1, 3, 5, 3, 6, 8, 7], [4.0, 4, 4, 4, 5, 1, 2, 9]])


def test_rank_within_counts_from_the_highest_of_each_part():
    assert rank_within(SCORES, PARTS)[0, 1:].tolist() == [2, 0, 3, 1, 2, 0, 1]     # 3 before the later 3
    assert rank_within(SCORES, PARTS)[1, :7].tolist() == [1, 2, 3, 4, 0, 1, 0]


def test_size_of_part():
    assert size_of_part(PARTS).tolist() == [[1, 3, 3, 4, 3, 4, 4, 4], [5, 5, 5, 5, 5, 2, 2, 1]]


def test_shares_follow_weights_and_the_budget_is_met():
    weights = torch.tensor([[0.0, 1, 1, 3, 1, 3, 3, 3]])
    kept = keep_shared(SCORES[:1], PARTS[:1], weights, torch.ones(1, 8, dtype=torch.bool), 4)
    assert kept.nonzero()[:, 1].tolist() == [2, 5, 6, 7]                            # one of part 0, three of part 1


@pytest.mark.parametrize("keep", range(10))
def test_what_a_part_cannot_use_goes_to_the_others_and_no_part_comes_last(keep):
    weights = torch.tensor([[0.0, 1, 1, 0, 1, 0, 0, 0], [0.0, 0, 0, 0, 0, 5, 5, 0]])
    among = torch.ones(2, 8, dtype=torch.bool)
    among[1, 0] = False
    kept = keep_shared(SCORES, PARTS, weights, among, keep)
    assert kept.sum(1).tolist() == [min(keep, 8), min(keep, 7)]
    if 3 <= keep < 8:
        assert kept[0, [1, 2, 4]].all() and not kept[0, 0]
    if 2 <= keep < 7:
        assert kept[1, 5:7].all() and not kept[1, 7]


def test_what_is_no_candidate_takes_no_place_in_its_part():
    scores, parts = torch.tensor([[9.0, 1, 2, 3]]), torch.tensor([[0, 0, 1, 1]])
    among = torch.tensor([[False, True, True, True]])
    assert keep_shared(scores, parts, torch.tensor([[1, 1, 0.9, 0.9]]), among, 1).tolist() == [[False, True, False, False]]


def test_parts_to_be_cut():
    kept = torch.tensor([[True, True, False, True], [False, True, True, True]])
    found = [(sample, tokens.tolist(), share) for sample, tokens, share in
             to_be_cut(kept, torch.tensor([[-1, 0, 0, 1], [-1, 2, 3, 3]]))]
    assert found == [(0, [1, 2], 1)]
