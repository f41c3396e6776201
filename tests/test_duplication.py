"""The mathematics of duplication against plain Python loops, and the paper's lemma against a counter-example."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart.duplication import (
    corrected_bound,
    cosine,
    coverage_radius,
    duplicates,
    epsilon_per_pivot,
    paper_bound,
)

# a machine with other things to do misses any deadline
examples = settings(deadline=None, max_examples=60)


@st.composite
def problems(draw, unit=False):
    """Tokens of mixed lengths, pivots among them, and a kept set that holds the pivots."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, d, p = draw(st.integers(2, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 2))
    tokens = torch.randn(n, d, generator=generator) * torch.rand(n, 1, generator=generator)
    if unit:
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    kept = torch.rand(n, generator=generator) < draw(st.floats(0, 1))
    kept[:p] = True
    return tokens, tokens[:p], kept


def angle_cosine(a, b):
    dot = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return dot / (math.hypot(*a.tolist()) * math.hypot(*b.tolist()))


@examples
@given(problems())
def test_cosine_is_the_cosine_of_the_angle(problem):
    tokens, pivots, _ = problem
    table = cosine(pivots, tokens)
    assert table.shape == (len(pivots), len(tokens))
    for i, pivot in enumerate(pivots):
        for j, token in enumerate(tokens):
            assert table[i, j].item() == pytest.approx(angle_cosine(pivot, token), abs=1e-5)


def test_cosine_is_taken_in_float32_and_gives_nothing_to_zeros():
    tokens = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16)
    assert cosine(tokens, tokens).dtype == torch.float32
    assert cosine(tokens, tokens).tolist() == [[pytest.approx(1.0), 0.0], [0.0, 0.0]]


@examples
@given(problems(), st.floats(-1, 1), st.floats(-1, 1))
def test_duplicates_are_the_tokens_above_epsilon_of_each_pivot(problem, first, second):
    tokens, pivots, _ = problem
    epsilons = torch.tensor([first, second][: len(pivots)])
    found = duplicates(tokens, pivots, epsilons)
    for i, epsilon in enumerate(epsilons):
        assert torch.equal(found[i], cosine(pivots, tokens)[i] > epsilon)
        assert torch.equal(found[i], duplicates(tokens, pivots, epsilon.item())[i])
    if first <= second:
        assert not (duplicates(tokens, pivots, second) & ~duplicates(tokens, pivots, first)).any()


@examples
@given(problems())
def test_epsilon_is_the_highest_that_every_removed_token_honours(problem):
    tokens, pivots, kept = problem
    epsilon = epsilon_per_pivot(tokens, pivots, kept)
    removed = cosine(pivots, tokens)[:, ~kept]
    if kept.all():
        assert epsilon.tolist() == [1.0] * len(pivots)
    else:
        assert (removed >= epsilon[:, None]).all() and (removed == epsilon[:, None]).any(-1).all()


@examples
@given(problems())
def test_coverage_is_the_hausdorff_distance(problem):
    tokens, _, kept = problem
    everyone, rest = tokens.tolist(), tokens[kept].tolist()
    to_kept = max(min(math.dist(x, r) for r in rest) for x in everyone)
    to_all = max(min(math.dist(x, r) for x in everyone) for r in rest)
    assert to_all == 0
    assert coverage_radius(tokens, kept).item() == pytest.approx(max(to_kept, to_all), abs=1e-6)


@examples
@given(problems())
def test_keeping_more_never_covers_worse(problem):
    tokens, _, kept = problem
    radius = coverage_radius(tokens, kept)
    for j in range(len(tokens)):
        assert coverage_radius(tokens, kept | (torch.arange(len(tokens)) == j)) <= radius
    assert coverage_radius(tokens, torch.ones_like(kept)) == 0
    assert coverage_radius(tokens, torch.zeros_like(kept)) == math.inf


def test_twins_are_at_distance_zero_even_when_they_are_long():
    tokens = torch.randn(40, 64).add(100).repeat(2, 1)
    assert coverage_radius(tokens, torch.arange(80) < 40) == 0


@examples
@given(problems(unit=True))
def test_with_equal_norms_the_paper_bounds_the_coverage(problem):
    tokens, pivots, kept = problem
    epsilon = epsilon_per_pivot(tokens, pivots, kept).max()
    assert coverage_radius(tokens, kept) <= paper_bound(epsilon, 1.0) + 1e-3


@examples
@given(problems())
def test_with_any_norms_the_corrected_bound_holds_and_the_paper_s_up_to_one_half(problem):
    tokens, pivots, kept = problem
    norm = tokens.norm(dim=-1).max()
    epsilon = epsilon_per_pivot(tokens, pivots, kept).max()
    radius = coverage_radius(tokens, kept)
    assert radius <= corrected_bound(epsilon, norm) * (1 + 1e-4)
    if epsilon <= 0.5:
        assert radius <= paper_bound(epsilon, norm) * (1 + 1e-4)


@examples
@given(problems())
def test_with_the_smallest_norm_known_the_bound_still_holds_and_is_no_higher(problem):
    tokens, pivots, kept = problem
    norms = tokens.norm(dim=-1)
    epsilon = epsilon_per_pivot(tokens, pivots, kept).max()
    sharper = corrected_bound(epsilon, norms.max(), norms.min())
    assert coverage_radius(tokens, kept) <= sharper * (1 + 1e-4) + 1e-3
    assert sharper <= corrected_bound(epsilon, norms.max()) * (1 + 1e-6)


@examples
@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.1, 10))
def test_the_corrected_bound_is_the_longest_distance_there_is(epsilon, share, norm):
    smallest = share * norm
    lengths = torch.linspace(smallest, norm, 41)
    squared = lengths[:, None] ** 2 + lengths**2 - 2 * epsilon * lengths[:, None] * lengths
    bound = corrected_bound(epsilon, norm, smallest).item()
    assert bound == pytest.approx(squared.max().clamp(min=0).sqrt().item(), abs=1e-3 * norm)
    if share > 2 * epsilon - 1 + 1e-3:
        assert bound == pytest.approx(paper_bound(epsilon, norm).item(), abs=1e-3 * norm)


def test_equal_norms_are_the_paper_s_case_and_impossible_ones_are_refused():
    assert corrected_bound(0.9, 2.0, 2.0).item() == pytest.approx(paper_bound(0.9, 2.0).item(), abs=1e-6)
    assert corrected_bound(1.0, 2.0).item() == 2.0
    for smallest in (-0.1, 2.1):
        with pytest.raises(ValueError, match="0 <= smallest <= norm"):
            corrected_bound(0.9, 2.0, smallest)
    with pytest.raises(ValueError, match="smallest=.*2.5"):
        corrected_bound(torch.tensor([0.9, 0.9]), torch.tensor([3.0, 2.0]), torch.tensor([2.5, 2.5]))


def test_a_short_token_escapes_the_paper_s_bound():
    """Same direction, lengths 1 and 0.1: cosine 1 promises distance 0, and the distance is 0.9."""
    tokens = torch.tensor([[1.0, 0.0], [0.1, 0.0]])
    kept = torch.tensor([True, False])
    epsilon = epsilon_per_pivot(tokens, tokens[:1], kept)
    assert epsilon.item() == 1 and paper_bound(epsilon, norm=1.0).item() == 0
    assert coverage_radius(tokens, kept).item() == pytest.approx(0.9)
    assert corrected_bound(epsilon, norm=1.0).item() == 1


def test_batches_are_rows_computed_alone():
    tokens, kept = torch.randn(3, 8, 4), torch.rand(3, 8) < 0.5
    pivots, epsilon = tokens[:, :2], torch.tensor([[0.1, 0.2], [0.3, -0.4], [0.0, 0.9]])
    for row in range(3):
        one = tokens[row], pivots[row]
        assert torch.equal(duplicates(tokens, pivots, epsilon)[row], duplicates(*one, epsilon[row]))
        assert torch.allclose(epsilon_per_pivot(tokens, pivots, kept)[row], epsilon_per_pivot(*one, kept[row]))
        assert torch.equal(coverage_radius(tokens, kept)[row], coverage_radius(tokens[row], kept[row]))
