"""FitPrune: the recipe, the score, the fit."""

import pytest
import torch
from unequal import alone, real, together
from views import view

from dart.methods.fitprune import LLAVA, FitPrune, fit, received


def test_the_default_recipe_drops_what_was_published():
    plan = FitPrune(127).kept(576, 32)
    assert [plan[i] - plan[i + 1] for i in range(31)] == list(LLAVA[:31])
    assert plan[-1] == 127
    assert FitPrune(127).places(32)[:3] == (1, 2, 3) and 25 not in FitPrune(127).places(32)


def test_a_recipe_is_scaled_to_the_budget_and_stretched_to_the_depth():
    method = FitPrune(4, recipe=(1, 0, 3, 0))
    assert method.kept(12, 4) == [12, 10, 10, 4]
    assert method.places(4) == (1, 3)
    assert method.kept(12, 8) == [12, 11, 10, 10, 10, 7, 4, 4]
    assert FitPrune(64).kept(576, 6)[-1] == 64


def test_a_token_stays_if_both_image_and_words_attend_to_it():
    # Four image tokens, two words. Per head and word; the maximum over heads counts, then the mean over words.
    attention = torch.zeros(1, 2, 6, 6)
    attention[0, 0, 4, :4] = torch.tensor([0.5, 0.1, 0.2, 0.1])
    attention[0, 1, 4, :4] = torch.tensor([0.1, 0.1, 0.4, 0.1])
    attention[0, 0, 5, :4] = torch.tensor([0.3, 0.1, 0.0, 0.3])
    attention[0, 0, 3, :4] = torch.tensor([0.0, 0.9, 0.1, 0.0])
    attention[0, 1, 2, :3] = torch.tensor([0.1, 0.1, 0.5])
    seen = view(torch.zeros(1, 6, 4), slice(0, 4), attention=attention, layer=1, n_layers=2)
    own, cross = received(seen)
    assert torch.allclose(own[0, :4], torch.tensor([0.1, 1.0, 0.6, 0.0]) / 4)
    assert torch.allclose(cross[0, :4], torch.tensor([0.8, 0.2, 0.4, 0.4]) / 2)
    # Products 0.08, 0.2, 0.24, 0: neither signal alone would rank them so.
    for keep, kept in [(0, []), (1, [2]), (2, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])]:
        assert FitPrune(keep, recipe=(1, 0)).select(seen)[0].nonzero().flatten().tolist() == kept


def by_brute_force(own, cross, alpha):
    """One sample: the recipe of one alpha, with lists."""
    gone, recipe = set(), []
    for layer in range(len(own)):
        spare = []
        for mass in (own[layer], cross[layer]):
            lost, may_go = sum(mass[i] for i in gone), set()
            for i in sorted(set(range(len(mass))) - gone, key=lambda i: mass[i]):
                lost += mass[i]
                if lost > alpha * sum(mass):
                    break
                may_go.add(i)
            spare.append(may_go)
        recipe.append(len(spare[0] & spare[1]))
        gone |= spare[0] & spare[1]
    return tuple(recipe)


@pytest.mark.parametrize("keep", [2, 5, 7])
def test_the_fit_is_the_least_loss_that_meets_the_budget(keep):
    random = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(keep), dtype=torch.double) ** 2
    own, cross = random.tolist()
    recipes = [by_brute_force(own, cross, step / 5000) for step in range(5001)]
    least = next(recipe for recipe in recipes if 8 - sum(recipe) <= keep)
    assert fit(random[None, 0], random[None, 1], keep) == least


def test_the_fit_drops_early_what_is_never_attended_to():
    own = torch.ones(1, 4, 10)
    own[:, :, 5:] = 0.001
    assert fit(own, own, keep=5) == (5, 0, 0, 0)


@pytest.mark.parametrize("side, dtype", [("left", torch.float32), ("right", torch.float16), ("left", torch.bfloat16)])
def test_a_batch_is_answered_like_its_samples_and_meets_the_budget(side, dtype):
    for layer in (1, 3):
        views = alone(dtype=dtype, n_layers=4, layer=layer)
        batch = together(views, side)
        for keep in (0, 1, 4, 9, 12, 100):
            method = FitPrune(keep, recipe=(2, 1, 1, 0))
            kept = method.select(batch)
            assert kept.sum(1).tolist() == [method.kept(count, 4)[layer] for count in batch.image_count.tolist()]
            if layer == 3:
                assert kept.sum(1).tolist() == batch.image_count.clamp(max=keep).tolist()
            for row, one in zip(real(kept, batch), views):
                assert torch.equal(row, method.select(one)[0])


def test_padding_that_attends_to_nothing_does_not_spread():
    batch = together(alone(n_layers=2, layer=1), "left")
    plain = FitPrune(3, recipe=(1, 0)).select(batch)
    batch.noted.weights.masked_fill_(batch.padding_mask[:, None, :, None], torch.nan)
    assert torch.equal(FitPrune(3, recipe=(1, 0)).select(batch), plain)


def test_refuses_what_cannot_be_meant():
    for recipe in [(0, 0, 5), (3, -1, 2), ()]:
        with pytest.raises(ValueError, match="give tokens to drop for every layer"):
            FitPrune(4, recipe=recipe)
    with pytest.raises(ValueError, match="keep=-1; give a whole number"):
        FitPrune(-1)
