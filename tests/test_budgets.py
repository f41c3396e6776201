"""Budgets that mean the same: plans, and settings that meet them."""

from dataclasses import dataclass

import pytest

import dart
from dart import budgets, cost

CONFIG = cost.shape("llava-1.5-7b")


@dataclass(frozen=True)
class Halving(dart.Method):
    """All image tokens, then the mean of all and `keep`, then `keep`, each for a third of the layers."""

    keep: int

    def places(self, n_layers):
        return n_layers // 3, 2 * n_layers // 3

    def kept(self, image_tokens, n_layers):
        first, second = self.places(n_layers)
        return [image_tokens] * first + [(image_tokens + self.keep) // 2] * (second - first) + [self.keep] * (n_layers - second)


def test_a_plan_by_hand():
    found = budgets.plan(dart.DART(keep=64), CONFIG, 636, 576)
    assert found.kept == (576, 576, *[64] * 30) and found.average == (2 * 576 + 30 * 64) / 32
    lengths = [636] * 2 + [124] * 30
    assert found.flops == sum(cost.layer_flops(CONFIG, lengths))
    assert found.kv_bytes == 2 * 4096 * 2 * sum(lengths)
    plain = budgets.plan(None, CONFIG, 636, 576)
    assert plain.kept == (576,) * 32 and plain.kv_bytes == 2 * 4096 * 2 * 636 * 32


def test_the_same_method_meets_its_own_budget():
    for convention, wanted in (("kept", 64), ("flops", 64)):
        assert budgets.meet(dart.DART, 64, convention, CONFIG, 636, 576) == dart.DART(wanted)


@pytest.mark.parametrize("keep", [280, 330, 400])
def test_the_average_is_met_by_the_nearest_setting(keep):
    method = budgets.meet(Halving, keep, "average", CONFIG, 636, 576)
    all_averages = {n: budgets.plan(Halving(n), CONFIG, 636, 576).average for n in range(1, 577)}
    nearest = min(all_averages, key=lambda n: abs(all_averages[n] - keep))
    assert all_averages[method.keep] == all_averages[nearest]


@pytest.mark.parametrize("make", [lambda n: dart.DART(n, layer=0), lambda n: dart.DART(n, layer=8), lambda n: dart.Random(n, layer=3)])
def test_equal_flops_by_brute_force(make):
    config = cost.shape("llava-1.5-7b")
    wanted = sum(cost.layer_flops(config, cost.layer_lengths(config, 636, 576, 192)))
    found = budgets.plan(budgets.meet(make, 192, "flops", config, 636, 576), config, 636, 576).flops
    if make(1).layer == 8:                       # it has paid for eight layers and keeps less than 192
        assert budgets.meet(make, 192, "flops", config, 636, 576).keep < 192
    assert abs(found - wanted) == min(abs(budgets.plan(make(n), config, 636, 576).flops - wanted) for n in range(1, 577))


def test_budgets_that_cannot_be_met_are_refused():
    with pytest.raises(budgets.OutOfReach, match="DART cannot meet keep=64 under convention 'flops'"):
        budgets.meet(lambda n: dart.DART(n, layer=16), 64, "flops", CONFIG, 636, 576)
    with pytest.raises(ValueError, match="convention='token'; give one of 'kept', 'average', 'flops'"):
        budgets.meet(dart.DART, 64, "token", CONFIG, 636, 576)


def test_no_token_at_all_is_a_setting_too():
    config = cost.shape("llava-1.5-7b")
    average = budgets.plan(dart.DART(0), config, 45, 32).average
    assert average == 2 and budgets.meet(dart.DART, 2, "average", config, 45, 32) == dart.DART(0)
