"""DART's pivot rules on eight tokens, its plan for every budget, and that its default has not moved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dart import DART
from dart.methods.dart import PIVOT_RULES
from dart.select import dart_keep
from views import view


def prompt(seed=0, batch=2, length=12, image=slice(2, 9), **more):
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, 6, generator=rng)
    keys, values = (torch.randn(batch, 2, length, 4, generator=rng) for _ in range(2))
    attention = torch.rand(batch, 3, length, length, generator=rng).tril()
    return view(hidden, image, keys=keys, values=values, attention=attention / attention.sum(-1, keepdim=True), **more)


def pivots(v, rule, row=0, number=2, seed=0):
    """Image pivots alone: no text pivot, and no token beside the pivots."""
    kept = DART(keep=number, image_pivots=number, text_pivots=0, pivot_rule=rule, seed=seed).select(v)
    return set(kept[row].nonzero().flatten().tolist())


@pytest.mark.parametrize("rule", PIVOT_RULES)
def test_pivots_of_every_rule_by_hand(rule):
    v = prompt()
    for row in range(2):
        def score(i):
            if rule == "random":
                return np.random.default_rng(0).random(12)[i]
            if rule.startswith("attention"):
                return v.noted.weights[row, :, 11, i].mean().item()
            states = v.keys if rule.startswith("key") else v.values
            return states[row, :, i].abs().sum().item()
        best = sorted(range(2, 9), key=score, reverse=not rule.endswith("min"))
        assert pivots(v, rule, row) == set(best[:2])


@pytest.mark.parametrize("rule", PIVOT_RULES)
def test_text_pivots_follow_the_rule_too(rule):
    """The text token that the rule ranks first claims what is least like it."""
    v = prompt(batch=1)
    method = DART(keep=1, image_pivots=0, text_pivots=1, pivot_rule=rule)
    unit = v.hidden_states[0] / v.hidden_states[0].norm(dim=1, keepdim=True)
    answers = {pivot: int((unit[2:9] @ unit[pivot]).argmin()) + 2 for pivot in (9, 10, 11)}
    scores = {
        "key": v.keys[0, :, 9:].abs().sum((0, 2)),
        "value": v.values[0, :, 9:].abs().sum((0, 2)),
        "attention": v.noted.weights[0, :, 11, 9:].mean(0),
        "random": torch.from_numpy(np.random.default_rng(0).random(12)[9:]),
    }[rule.split("-")[0]]
    pivot = 9 + int(scores.argmin() if rule.endswith("min") else scores.argmax())
    assert method.select(v)[0].nonzero().flatten().tolist() == [answers[pivot]]


def test_the_default_is_the_plain_rule():
    v = prompt()
    assert torch.equal(DART(keep=4).select(v), dart_keep(v.hidden_states, v.keys, v.image_mask, keep=4))
    assert torch.equal(DART(keep=4, pivot_rule="key-norm-max").select(v), DART(keep=4).select(v))


def test_seeds_differ_and_repeat():
    v = prompt(length=40, image=slice(2, 34))
    assert pivots(v, "random", seed=3) == pivots(v, "random", seed=3)
    assert len({tuple(sorted(pivots(v, "random", seed=s))) for s in range(5)}) > 1


@pytest.mark.parametrize("rule", PIVOT_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_budgets_and_batches(rule, dtype):
    v = prompt()
    image = v.image_mask.clone()
    image[1, 6:] = False
    padded = [torch.nn.functional.pad(x, (0, 0, 3, 0), value=5.0).to(dtype) for x in (v.hidden_states, v.keys, v.values)]
    attention = torch.nn.functional.pad(v.noted.weights, (3, 0, 3, 0))
    together = view(padded[0], slice(0), keys=padded[1], values=padded[2], attention=attention,
                    padding=(torch.arange(15) < 3).expand(2, -1))
    together = replace(together, image_mask=torch.nn.functional.pad(image, (3, 0)), image_count=None)
    for keep in (0, 1, 3, 7, 99):
        kept = DART(keep=keep, pivot_rule=rule).select(together)
        assert kept.sum(1).tolist() == [min(keep, 7), min(keep, 4)]
        for row in range(2):
            hidden, keys, values = (x[row : row + 1].to(dtype) for x in (v.hidden_states, v.keys, v.values))
            alone = view(hidden, slice(2, (9, 6)[row]), keys=keys, values=values, attention=v.noted.weights[row : row + 1])
            assert torch.equal(DART(keep=keep, pivot_rule=rule).select(alone)[0], kept[row, 3:])


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_nothing_of_the_picture_stays(layer):
    method = DART(keep=0, layer=layer)
    assert not method.select(prompt(layer=layer)).any()
    assert method.places(5) == (layer,)
    assert method.kept(7, 5) == [7] * layer + [0] * (5 - layer)


@pytest.mark.parametrize("method, stays", [
    (DART(keep=5), 5),
    (DART(keep=50), 30),
    (DART(per_pivot=2), 20),
    (DART(per_pivot=9), 30),
    (DART(per_pivot=3, image_pivots=2, text_pivots=0), 8),
    (DART(per_pivot=3, image_pivots=0, text_pivots=2), 6),
    (DART(reduction_ratio=0.75), 8),
    (DART(reduction_ratio=1.0), 0),
    (DART(reduction_ratio=0.7), 9),
])
def test_the_plan_is_what_happens(method, stays):
    v = prompt(length=40, image=slice(2, 32))
    assert method.select(v).sum(1).tolist() == [stays, stays]
    assert method.kept(30, 4) == [30, 30, stays, stays]


def test_plan_of_a_ratio_rounds_as_the_choice_does():
    for count in range(1, 60):
        v = prompt(batch=1, length=count + 9, image=slice(0, count))
        for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
            method = DART(reduction_ratio=ratio)
            assert method.kept(count, 3)[2] == int(method.select(v).sum())


@pytest.mark.parametrize("given, words", [
    (dict(pivot_rule="k-norm"), "pivot_rule='k-norm'; give one of 'key-norm-max', "),
    (dict(seed=-1), "seed=-1; give a whole number, 0 or more"),
])
def test_what_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        DART(keep=4, **given)


def test_attention_needs_a_layer_before():
    with pytest.raises(ValueError, match="layer=0 has no layer before it"):
        DART(keep=1, pivot_rule="attention-max", layer=0).select(view(torch.randn(1, 4, 2), slice(0, 3), layer=0))
    with pytest.raises(ValueError, match=r"pivot_scores has shape \(1, 3\)"):
        dart_keep(torch.randn(1, 4, 2), torch.randn(1, 1, 4, 2), torch.ones(1, 4, dtype=torch.bool), keep=1,
                  pivot_scores=torch.zeros(1, 3))
