import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.merging.matching import (
    assignment_matrix,
    follow,
    match,
    ownership,
    penalised_similarity,
    pool_over_patches,
    unmerge,
    weighted_merge,
)
from tests.model.merging.twins import merge_by_loop, tome_owners


@st.composite
def problems(draw):
    """Random keys and scores, and how many sources merge."""
    tokens = draw(st.integers(2, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    keys = torch.randn(3, tokens, 6, generator=generator)
    score = torch.rand(3, tokens, generator=generator)
    return keys, score, draw(st.integers(0, tokens // 2))


@settings(deadline=None, max_examples=80)
@given(problems())
def test_without_a_score_matching_is_that_of_tome(problem):
    keys, _, merged = problem
    rows = match(penalised_similarity(keys, None, 0.0), merged)
    assert rows.tolist() == [tome_owners(image, merged) for image in keys]


@settings(deadline=None, max_examples=40)
@given(problems())
def test_alpha_zero_ignores_the_score(problem):
    keys, score, _ = problem
    torch.testing.assert_close(penalised_similarity(keys, score, 0.0), penalised_similarity(keys, None, 0.7))


@settings(deadline=None, max_examples=40)
@given(problems(), st.floats(0, 1))
def test_the_penalty_is_one_minus_alpha_times_the_larger_score(problem, alpha):
    keys, score, _ = problem
    found = penalised_similarity(keys, score, alpha)
    for image in range(len(keys)):
        for s, i in enumerate(range(1, keys.shape[1], 2)):
            for d, j in enumerate(range(0, keys.shape[1], 2)):
                cosine = torch.cosine_similarity(keys[image, i], keys[image, j], dim=0)
                expected = cosine * (1 - alpha * max(float(score[image, i]), float(score[image, j])))
                torch.testing.assert_close(found[image, s, d], expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=40)
@given(problems(), st.floats(0, 1))
def test_clamping_sets_negative_cosines_to_zero_and_leaves_the_others(problem, alpha):
    keys, score, _ = problem
    signed, clamped = (penalised_similarity(keys, score, alpha, clamp=clamp) for clamp in (False, True))
    assert clamped.min() >= 0
    torch.testing.assert_close(clamped, signed.clamp(min=0), atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(0, 2**16))
def test_merging_is_the_size_weighted_mean_and_keeps_every_patch(problem, seed):
    keys, score, merged = problem
    kept = keys.shape[1] - merged
    size = torch.randint(1, 9, keys.shape[:2], generator=torch.Generator().manual_seed(seed)).float()
    rows = match(penalised_similarity(keys, score, 0.7), merged)
    tokens, total = weighted_merge(keys, size, assignment_matrix(rows, kept))
    assert tokens.shape == (3, kept, 6)
    torch.testing.assert_close(total.sum(1), size.sum(1))
    for image in range(3):
        expected, sizes = merge_by_loop(keys[image], size[image].tolist(), rows[image].tolist())
        torch.testing.assert_close(tokens[image], expected, atol=1e-5, rtol=1e-5)
        assert total[image].tolist() == sizes


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(1, 3))
def test_every_patch_has_one_owner_after_any_number_of_merges(problem, rounds):
    keys, _, _ = problem
    source_map = torch.arange(keys.shape[1]).expand(3, -1)
    size = torch.ones(keys.shape[:2])
    tokens = keys
    for _ in range(rounds):
        merged = tokens.shape[1] // 2
        rows = match(penalised_similarity(tokens, None, 0.0), merged)
        kept = tokens.shape[1] - merged
        tokens, size = weighted_merge(tokens, size, assignment_matrix(rows, kept))
        expected = torch.gather(rows, 1, source_map)
        source_map = follow(source_map, rows)
        assert source_map.tolist() == expected.tolist()
    owned = ownership(source_map, tokens.shape[1])
    assert owned.sum(1).eq(1).all()
    torch.testing.assert_close(owned.sum(2), size)


def test_protected_tokens_merge_last():
    keys = torch.ones(1, 8, 4)
    score = torch.zeros(1, 8)
    score[0, 3] = 1.0
    rows = match(penalised_similarity(keys, score, 0.5), 3)
    assert rows[0, 3] == 0, "the protected source is the only one that stays"
    assert sorted(rows[0].tolist())[:2] == [0, 1]


def test_unmerge_gives_every_patch_the_value_of_its_owner_and_zero_where_it_was_dropped():
    source_map = torch.tensor([[0, 1, 1, -1]])
    values = torch.tensor([[[2.0], [5.0]]])
    assert unmerge(values, source_map)[0, :, 0].tolist() == [2.0, 5.0, 5.0, 0.0]


def test_pooling_a_score_takes_the_mean_over_owned_patches():
    source_map = torch.tensor([[0, 1, 1, 0]])
    assert pool_over_patches(torch.tensor([[1.0, 2.0, 4.0, 3.0]]), source_map, 2).tolist() == [[2.0, 3.0]]


def test_dropped_patches_stay_dropped():
    source_map = torch.tensor([[0, -1, 1]])
    assert follow(source_map, torch.tensor([[-1, 0]])).tolist() == [[-1, -1, 0]]


def test_merging_in_half_precision_does_not_overflow():
    tokens = torch.full((1, 4, 2), 60_000.0, dtype=torch.half)
    merged, _ = weighted_merge(
        tokens, torch.full((1, 4), 49.0), assignment_matrix(torch.zeros(1, 4, dtype=torch.long), 1)
    )
    assert merged.dtype == torch.half
    assert merged.tolist() == [[[60_000.0, 60_000.0]]]
