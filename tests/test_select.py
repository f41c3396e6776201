"""The pure core: golden sets of the authors' function, brute force on eight tokens, properties."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dart.methods import DART
from dart.methods.base import View
from dart.select import dart_keep

GOLDEN = json.loads((Path(__file__).parent / "golden_selection.json").read_text())


def golden_inputs(seed, length, image_start, image_length, hidden_size, heads, clusters):
    """The states on which the authors' function was run: image tokens around `clusters` centres, so that duplicates exist."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, hidden_size), dtype=np.float32)
    hidden = rng.standard_normal((length, hidden_size), dtype=np.float32)
    image = slice(image_start, image_start + image_length)
    member = rng.integers(0, clusters, image_length)
    hidden[image] = centres[member] + 0.35 * hidden[image]
    keys = rng.standard_normal((heads, length, hidden_size // heads), dtype=np.float32)
    return torch.from_numpy(hidden)[None], torch.from_numpy(keys)[None]


def released_budget(case):
    """Tokens that each pivot claims in the authors' code, one rule for each of its three model paths."""
    pivots = case["image_pivots"] + case["text_pivots"]
    length = case["image_length"]
    if case["path"] == "llava-next":
        return min(case["retain_next"], length - case["image_pivots"]) // pivots
    if case["path"] == "llava-1.5" and case["max_num_trunction"] is not None:
        return case["max_num_trunction"] // pivots
    return int(length * (1 - case["reduction_ratio"]) / pivots)


def image_span(case):
    mask = torch.zeros(1, case["length"], dtype=torch.bool)
    mask[:, case["image_start"] : case["image_start"] + case["image_length"]] = True
    return mask


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['path']}-{c['seed']}")
def test_golden_sets_of_the_authors_function(case):
    hidden, keys = golden_inputs(*(case[name] for name in (
        "seed", "length", "image_start", "image_length", "hidden_size", "heads", "clusters")))
    pivots = dict(image_pivots=case["image_pivots"], text_pivots=case["text_pivots"])
    kept = dart_keep(hidden, keys, image_span(case), per_pivot=released_budget(case), pivot_order="released", **pivots)
    assert kept[0].nonzero().flatten().tolist() == case["kept"]
    only_pivots = dart_keep(hidden, keys, image_span(case), per_pivot=0, **pivots)
    assert only_pivots[0].nonzero().flatten().tolist() == case["expected_image_pivots"]
    # Left padding moves the positions, not the choice.
    pad = torch.nn.functional.pad
    padded = dart_keep(
        pad(hidden, (0, 0, 5, 0)), pad(keys, (0, 0, 5, 0)), pad(image_span(case), (5, 0)), per_pivot=released_budget(case),
        pivot_order="released", padding_mask=torch.arange(case["length"] + 5)[None] < 5, **pivots)
    assert torch.equal(padded[:, 5:], kept)


def by_brute_force(hidden, keys, image, keep, image_pivots, text_pivots):
    """One row, plain Python: lists, loops, sorted order."""
    length = len(image)
    norm = [sum(abs(float(x)) for x in keys[:, i].flatten()) for i in range(length)]
    unit = [h / h.norm() for h in hidden]
    spots = [i for i in range(length) if image[i]]
    if not spots:
        return set()
    text = [i for i in range(max(spots) + 1, length)]
    keep = min(keep, len(spots))
    from_text = sorted(text, key=lambda i: -norm[i])[:text_pivots]
    a = min(image_pivots if from_text else max(image_pivots, 1), keep)
    from_image = sorted(spots, key=lambda i: -norm[i])[:a]
    pivots = sorted(from_image) + sorted(from_text)
    kept, left = set(from_image), [i for i in spots if i not in from_image]
    each, more = divmod(keep - a, max(len(pivots), 1))
    for turn, pivot in enumerate(pivots):
        left.sort(key=lambda i: float(unit[i] @ unit[pivot]))
        claim = each + (turn < more)
        kept |= set(left[:claim])
        left = left[claim:]
    return kept


def test_brute_force_on_eight_tokens():
    torch.manual_seed(0)
    hidden, keys = torch.randn(8, 5), torch.randn(2, 8, 3)
    image = torch.tensor([0, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool)
    for keep, a, b in itertools.product(range(7), range(4), range(4)):
        kept = dart_keep(hidden[None], keys[None], image[None], keep=keep, image_pivots=a, text_pivots=b)
        expected = by_brute_force(hidden, keys, image, keep, a, b)
        assert set(kept[0].nonzero().flatten().tolist()) == expected, (keep, a, b)
        assert len(expected) == min(keep, 5)


@st.composite
def prompts(draw, batch=st.integers(1, 3)):
    seed, length = draw(st.integers(0, 10_000)), draw(st.integers(1, 24))
    rng = torch.Generator().manual_seed(seed)
    rows = draw(batch)
    image = torch.rand(rows, length, generator=rng) < draw(st.floats(0, 1))
    hidden = torch.randn(rows, length, 6, generator=rng)
    keys = torch.randn(rows, 2, length, 4, generator=rng)
    return hidden, keys, image


budgets = dict(keep=st.integers(0, 30), a=st.integers(0, 6), b=st.integers(0, 6), order=st.sampled_from(["sorted", "norm", "released"]))


@settings(deadline=None, max_examples=150)
@given(states=prompts(), **budgets)
def test_exact_budgets_are_met_and_text_is_never_a_candidate(states, keep, a, b, order):
    hidden, keys, image = states
    kept = dart_keep(hidden, keys, image, keep=keep, image_pivots=a, text_pivots=b, pivot_order=order)
    assert kept.sum(1).tolist() == image.sum(1).clamp(max=keep).tolist()
    assert not (kept & ~image).any()
    per_row = dart_keep(hidden, keys, image, keep=torch.full((len(image),), keep), image_pivots=a, text_pivots=b, pivot_order=order)
    assert torch.equal(per_row, kept)


@settings(deadline=None, max_examples=100)
@given(prompts(), st.integers(0, 5), st.integers(0, 4), st.integers(0, 4))
def test_released_budget_is_clamped_to_the_pool(states, k, a, b):
    hidden, keys, image = states
    kept = dart_keep(hidden, keys, image, per_pivot=k, image_pivots=a, text_pivots=b)
    for row, (mask, got) in enumerate(zip(image, kept.sum(1).tolist())):
        n = int(mask.sum())
        last = int(mask.nonzero().max()) if n else 0
        text = min(b, len(mask) - 1 - last) if n else 0
        pivots = min(a if text else max(a, 1), n)
        assert got == min(n, pivots + (pivots + text) * k)


@settings(deadline=None, max_examples=80)
@given(prompts(st.just(1)), st.integers(0, 12), st.integers(0, 4), st.integers(0, 4))
def test_brute_force_everywhere(states, keep, a, b):
    hidden, keys, image = states
    kept = dart_keep(hidden, keys, image, keep=keep, image_pivots=a, text_pivots=b)
    assert set(kept[0].nonzero().flatten().tolist()) == by_brute_force(hidden[0], keys[0], image[0], keep, a, b)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.integers(0, 20), st.randoms())
def test_permuting_the_image_permutes_the_choice(seed, keep, random):
    """With claims in the order of the norms, which travel with the tokens."""
    rng = torch.Generator().manual_seed(seed)
    hidden, keys = torch.randn(1, 20, 6, generator=rng), torch.randn(1, 2, 20, 4, generator=rng)
    image = torch.zeros(1, 20, dtype=torch.bool)
    image[:, 3:15] = True
    order = list(range(3, 15))
    random.shuffle(order)
    order = torch.tensor([*range(3), *order, *range(15, 20)])
    kept = dart_keep(hidden, keys, image, keep=keep, pivot_order="norm")
    moved = dart_keep(hidden[:, order], keys[:, :, order], image, keep=keep, pivot_order="norm")
    assert torch.equal(moved, kept[:, order])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_pruned_tokens_obey_the_threshold_of_every_pivot(seed, k):
    """A token that is dropped was never among the k least alike, so it is at least as alike as each pivot's last claim."""
    rng = torch.Generator().manual_seed(seed)
    hidden, keys = torch.randn(1, 40, 6, generator=rng), torch.randn(1, 2, 40, 4, generator=rng)
    image = torch.zeros(1, 40, dtype=torch.bool)
    image[:, 2:34] = True
    kept = dart_keep(hidden, keys, image, per_pivot=k, image_pivots=2, text_pivots=2)[0]
    norms = keys.abs().sum((1, 3))[0]
    pivots = sorted((norms[2:34].topk(2).indices + 2).tolist()) + sorted((norms[34:].topk(2).indices + 34).tolist())
    unit = hidden[0] / hidden[0].norm(dim=1, keepdim=True)
    free = {i for i in range(2, 34)} - set(pivots)
    for pivot in pivots:
        claimed = sorted(free, key=lambda i: float(unit[i] @ unit[pivot]))[:k]
        threshold = float(unit[claimed[-1]] @ unit[pivot])
        free -= set(claimed)
        for i in range(2, 34):
            if not kept[i]:
                assert float(unit[i] @ unit[pivot]) >= threshold - 1e-6
    assert free == {i for i in range(2, 34) if not kept[i]}


@settings(deadline=None, max_examples=60)
@given(prompts(st.just(1)), st.integers(0, 10), st.integers(0, 7), st.sampled_from(["sorted", "norm", "released"]))
def test_padding_changes_nothing(states, keep, pad, order):
    hidden, keys, image = states
    kept = dart_keep(hidden, keys, image, keep=keep, pivot_order=order)
    length = image.shape[1]
    for left, right in ((pad, 0), (0, pad)):
        padded = dart_keep(
            torch.nn.functional.pad(hidden, (0, 0, left, right), value=9.0),
            torch.nn.functional.pad(keys, (0, 0, left, right), value=9.0),
            torch.nn.functional.pad(image, (left, right)),
            keep=keep, pivot_order=order,
            padding_mask=~torch.nn.functional.pad(torch.ones_like(image), (left, right)),
        )
        assert torch.equal(padded[:, left : left + length], kept)
        assert padded.sum() == kept.sum()


def test_text_before_the_image_is_no_pivot():
    """Only text behind the last image token guides: other text may have any key."""
    torch.manual_seed(1)
    hidden, keys = torch.randn(1, 30, 6), torch.randn(1, 2, 30, 4)
    image = torch.zeros(1, 30, dtype=torch.bool)
    image[:, 5:12] = image[:, 16:22] = True
    kept = dart_keep(hidden, keys, image, keep=6)
    for between in (range(5), range(12, 16)):
        loud = keys.clone()
        loud[:, :, list(between)] = 100.0
        assert torch.equal(dart_keep(hidden, loud, image, keep=6), kept)
    choices = set()
    for behind in range(22, 30):
        loud = keys.clone()
        loud[:, :, behind] = 100.0
        choices.add(tuple(dart_keep(hidden, loud, image, keep=12).flatten().tolist()))
    assert len(choices) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_norms_are_taken_in_float32(dtype):
    """Sums of keys that a half-precision accumulator would round to a tie."""
    keys = torch.full((1, 1, 6, 2048), 1.0, dtype=dtype)
    keys[0, 0, 3, 0] = 1.5
    hidden = torch.eye(6, dtype=dtype)[None]
    image = torch.tensor([[True] * 5 + [False]])
    assert dart_keep(hidden, keys, image, keep=1)[0].tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("change, words", [
    (dict(keep=None), "keep=None, per_pivot=None; give exactly one"),
    (dict(per_pivot=2), "give exactly one"),
    (dict(keep=-1), "keep=-1; give a whole number, 0 or more"),
    (dict(image_pivots=-1), "image_pivots=-1"),
    (dict(keep=2.5), "keep=2.5; give a whole number"),
    (dict(pivot_order="by hand"), "pivot_order='by hand'; give one of 'sorted', 'norm', 'released'"),
    (dict(hidden=torch.zeros(4, 2)), "hidden has shape"),
    (dict(keys=torch.zeros(1, 1, 5, 2)), r"keys has shape \(1, 1, 5, 2\); give \(batch, heads, length, head_dim\)"),
    (dict(image_mask=torch.zeros(1, 4)), "image_mask is torch.float32"),
    (dict(padding_mask=torch.zeros(1, 5, dtype=torch.bool)), "padding_mask is torch.bool of shape"),
    (dict(keep=torch.tensor([1, 2])), r"keep has shape \(2,\)"),
])
def test_what_is_refused(change, words):
    given = dict(hidden=torch.zeros(1, 4, 2), keys=torch.zeros(1, 1, 4, 2), image_mask=torch.zeros(1, 4, dtype=torch.bool), keep=1)
    given |= change
    with pytest.raises(ValueError, match=words):
        dart_keep(given.pop("hidden"), given.pop("keys"), given.pop("image_mask"), **given)


class NoLookAtNumbers(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading numbers, shapes that depend on them, sending numbers."""

    refused = {
        torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default, torch.ops.aten.equal.default, torch.ops.aten.lift_fresh.default,
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or func in self.refused:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("order", ["sorted", "norm"])
@pytest.mark.parametrize("budget", [dict(keep=8), dict(per_pivot=2), dict(reduction_ratio=0.7)], ids=lambda b: next(iter(b)))
def test_nothing_in_the_selection_of_equal_samples_looks_at_numbers(budget, order):
    image = torch.zeros(2, 30, dtype=torch.bool)
    image[:, 4:24] = True
    given = torch.randn(2, 30, 16), torch.randn(2, 2, 30, 8), torch.randn(2, 2, 30, 8), image, torch.zeros_like(image)
    method = DART(**budget, pivot_order=order)
    # meta tensors have no numbers that `tolist` or `numpy` could read past the mode
    for device in ("cpu", "meta"):
        view = View(*(each.to(device) for each in given))
        with NoLookAtNumbers():
            kept = method.select(view)
        assert (kept.shape, kept.device.type) == (image.shape, device)


def test_the_released_order_does_look_at_numbers():
    """So that the test above is known to see it."""
    states, image = torch.randn(1, 6, 4), torch.tensor([[True] * 4 + [False] * 2])
    with NoLookAtNumbers(), pytest.raises(AssertionError, match="waits for the device"):
        dart_keep(states, states[:, None], image, keep=2, pivot_order="released")


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles for CPUs with a C++ compiler")
def test_compiled_code_chooses_the_same():
    generator = torch.Generator().manual_seed(0)
    hidden, keys = torch.randn(3, 100, 32, generator=generator), torch.randn(3, 2, 100, 16, generator=generator)
    image_mask = torch.zeros(3, 100, dtype=torch.bool)
    image_mask[:, 4:90] = True
    compiled = torch.compile(dart_keep, fullgraph=True, dynamic=False)(hidden, keys, image_mask, keep=24)
    assert_close(compiled, dart_keep(hidden, keys, image_mask, keep=24))
