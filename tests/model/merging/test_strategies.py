import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Scoring
from model.merging.frequency import low_pass_basis, rank, score_values
from model.merging.matching import assignment_matrix, penalised_similarity
from model.merging.strategies import STRATEGIES, First, View
from model.merging.strategies.controls import sobel_energy
from model.merging.strategies.pitome import energy, margin
from tests.model.merging import twins
from tests.model.tiny import TINY, images, tiny

GRID = (4, 5)
PATCHES = 20


def view(seed=0, batch=2, **changes):
    """A merging block that sees random tokens before anything has merged."""
    generator = torch.Generator().manual_seed(seed)
    tokens, keys = (torch.randn(batch, PATCHES, dim, generator=generator) for dim in (7, 6))
    attention = torch.randn(batch, PATCHES, generator=generator).softmax(1)
    basis, mean = low_pass_basis(GRID, 1).float(), tokens.mean(2)
    return View(
        tokens=tokens,
        size=torch.randint(1, 9, (batch, PATCHES), generator=generator).float(),
        features=keys,
        attention=attention,
        importance=attention * torch.rand(batch, PATCHES, generator=generator),
        images=torch.randn(batch, 3, 8, 10, generator=generator),
        source_map=torch.arange(PATCHES).expand(batch, -1),
        grid=GRID,
        basis=basis,
        first=First(mean, score_values(mean, basis)),
        depth=0.5,
        config=TINY.replace(**changes),
    )


def reduced(name, seen, kept):
    """New tokens, sizes and rows that a strategy makes of a view."""
    strategy = STRATEGIES[name]
    row = strategy.assign(seen, strategy.score(seen), kept)
    return *strategy.combine(seen, assignment_matrix(row, kept)), row


problems = given(st.integers(0, 2**16), st.integers(PATCHES // 2, PATCHES - 1))
few = settings(deadline=None, max_examples=40)


def test_the_config_names_every_strategy_and_no_other():
    assert get_args(Scoring) == tuple(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_leaves_the_schedules_tokens_and_each_of_them_owns_a_patch(name):
    torch.manual_seed(0)
    model = tiny(scoring=name, alpha=1.0)
    with torch.no_grad():
        output = model(images(4), trace=True)
    for step, left in zip(output.trace, (25, 18), strict=True):
        assert all(sorted(set(row.tolist()) - {-1}) == list(range(left)) for row in step.source_map)
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_each_strategy_differs_from_tome(name):
    torch.manual_seed(0)
    with torch.no_grad():
        found, tome = tiny(scoring=name, alpha=1.0)(images(4)), tiny(scoring="none")(images(4))
    assert not torch.allclose(found.logits, tome.logits)


@pytest.mark.parametrize("name", STRATEGIES)
def test_at_keep_rate_one_every_strategy_is_the_unmodified_model(name):
    model = tiny(scoring=name, keep_rate=1.0, merge_counts=(5, 5))
    with torch.no_grad():
        torch.testing.assert_close(model(images(2)).logits, model.vit(images(2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"random", "random_merge", "shuffled"}))
def test_images_of_a_batch_do_not_influence_each_other(name):
    model = tiny(scoring=name)
    with torch.no_grad():
        together, alone = model(images(3)), [model(image[None]) for image in images(3)]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), atol=1e-5, rtol=1e-5)
    assert torch.equal(together.source_map, torch.cat([one.source_map for one in alone]))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("pooling", [{}, {"global_pool": "avg", "class_token": False}])
def test_every_strategy_works_in_half_precision_with_and_without_a_class_token(name, pooling):
    torch.manual_seed(0)
    model = tiny(scoring=name, backbone_args={**TINY.backbone_args, **pooling})
    with torch.no_grad():
        logits = model.bfloat16()(images(2).bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@few
@problems
def test_every_strategy_but_random_accounts_for_every_patch(seed, kept):
    seen = view(seed)
    for name in sorted(set(STRATEGIES) - {"random"}):
        tokens, size, row = reduced(name, seen, kept)
        assert tokens.shape == (2, kept, 7)
        assert row.min() == 0
        torch.testing.assert_close(size.sum(1), seen.size.sum(1))


@few
@problems
def test_tomecis_merges_as_tome_and_weighs_by_class_importance(seed, kept):
    seen = view(seed)
    tokens, size, row = reduced("tomecis", seen, kept)
    _, sizes, expected_row = reduced("none", seen, kept)
    assert torch.equal(row, expected_row)
    torch.testing.assert_close(size, sizes)
    for image in range(2):
        expected, _ = twins.merge_by_loop(seen.tokens[image], seen.importance[image].tolist(), row[image].tolist())
        torch.testing.assert_close(tokens[image], expected, atol=1e-5, rtol=1e-5)


def test_a_token_without_any_importance_does_not_divide_by_zero():
    seen = view()
    blind = dataclasses.replace(seen, importance=torch.zeros(2, PATCHES))
    tokens, _, row = reduced("tomecis", blind, 12)
    expected, _ = twins.merge_by_loop(seen.tokens[0], [1.0] * PATCHES, row[0].tolist())
    torch.testing.assert_close(tokens[0], expected)


@few
@problems
def test_evit_keeps_the_most_attended_tokens_and_adds_up_the_rest(seed, kept):
    seen = view(seed)
    tokens, size, row = reduced("evit", seen, kept)
    for image in range(2):
        expected, owners = twins.evit(seen.tokens[image], seen.attention[image].tolist(), kept)
        assert row[image].tolist() == owners
        torch.testing.assert_close(tokens[image], expected, atol=1e-5, rtol=1e-5)
        fused = [float(seen.size[image, t]) for t, owner in enumerate(owners) if owner == kept - 1]
        assert float(size[image, -1]) == sum(fused)


def test_evit_neither_biases_attention_nor_weighs_the_pooling_by_size():
    assert not STRATEGIES["evit"].weighs_size
    model = tiny(scoring="evit", backbone_args={**TINY.backbone_args, "global_pool": "avg", "class_token": False})
    masks, pooled = [], []
    model.vit.blocks[3].register_forward_pre_hook(lambda _, given, named: masks.append(named), with_kwargs=True)
    model.vit.norm.register_forward_hook(lambda _, given, output: pooled.append(output))
    with torch.no_grad():
        logits = model(images(2)).logits
    assert masks == [{}]
    torch.testing.assert_close(logits, model.vit.head(model.vit.fc_norm(pooled[0].mean(1))))


@few
@problems
def test_pitome_merges_the_tokens_of_highest_energy_with_their_most_similar_ones(seed, kept):
    seen = view(seed)
    row = STRATEGIES["pitome"].assign(seen, None, kept)
    assert row.tolist() == [twins.pitome_owners(keys, PATCHES - kept, seen.depth) for keys in seen.features]


def test_pitome_protects_an_isolated_token_and_merges_a_cluster():
    keys = torch.eye(8)[:, :4].clone()
    keys[:6] = torch.tensor([1.0, 0.1, 0.0, 0.0])
    keys[6], keys[7] = torch.tensor([0.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    seen = dataclasses.replace(
        view(batch=1),
        tokens=keys[None],
        features=keys[None],
        size=torch.ones(1, 8),
        attention=None,
        importance=None,
        source_map=torch.arange(8)[None],
        grid=(2, 4),
        images=torch.zeros(1, 3, 4, 8),
        basis=torch.zeros(8, 1),
        first=First(torch.zeros(1, 8), torch.zeros(1, 8)),
    )
    row = STRATEGIES["pitome"].assign(seen, None, 5)[0].tolist()
    assert row[6:] == [3, 4]
    assert row.count(3) == row.count(4) == 1


def test_pitomes_margin_falls_from_nine_tenths_to_zero_and_its_energy_is_the_papers():
    assert [margin(depth) for depth in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.45, 0.0])
    found = energy(torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]), 0.9)
    assert found[0].tolist() == pytest.approx([(1 + torch.e**-0.4 - 1) / 2] * 2)


def test_the_margin_follows_the_depth_of_the_block(monkeypatch):
    depths = []
    monkeypatch.setitem(
        STRATEGIES, "none", dataclasses.replace(STRATEGIES["none"], score=lambda v: depths.append(v.depth))
    )
    with torch.no_grad():
        tiny(scoring="none")(images(1))
    assert depths == [0.25, 0.5]


@few
@problems
def test_tofu_merges_as_tome_and_keeps_the_norm_of_the_longest_token(seed, kept):
    seen = view(seed)
    tokens, size, row = reduced("tofu", seen, kept)
    mean, sizes, expected_row = reduced("none", seen, kept)
    assert torch.equal(row, expected_row)
    torch.testing.assert_close(size, sizes)
    torch.testing.assert_close(torch.cosine_similarity(tokens, mean, dim=2), torch.ones(2, kept))
    for image in range(2):
        for token in range(kept):
            longest = seen.tokens[image][row[image] == token].norm(dim=1).max()
            torch.testing.assert_close(tokens[image, token].norm(), longest)


def test_a_shuffled_score_is_the_frequency_score_in_another_order():
    torch.manual_seed(0)
    seen = view()
    lfgm, shuffled = STRATEGIES["lfgm"].score(seen), STRATEGIES["shuffled"].score(seen)
    assert not torch.equal(lfgm, shuffled)
    torch.testing.assert_close(lfgm.sort(1).values, shuffled.sort(1).values)
    orders = [[lfgm[image].tolist().index(value) for value in shuffled[image].tolist()] for image in range(2)]
    assert orders[0] != orders[1], "each image is shuffled on its own"


def test_an_inverted_score_is_one_minus_the_frequency_score():
    seen = view()
    torch.testing.assert_close(STRATEGIES["inverted"].score(seen), 1 - STRATEGIES["lfgm"].score(seen))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16))
def test_sobel_energy_is_that_of_the_three_by_three_operators(rows, columns, seed):
    values = torch.randn(2, rows * columns, generator=torch.Generator().manual_seed(seed))
    expected = torch.stack([twins.sobel_energy(image.reshape(rows, columns)) for image in values])
    torch.testing.assert_close(sobel_energy(values, (rows, columns)), expected, atol=1e-4, rtol=1e-4)


def test_the_sobel_score_marks_an_edge_and_nothing_else():
    mean = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]).repeat(4)[None]
    seen = dataclasses.replace(view(batch=1), first=First(mean, torch.zeros(1, PATCHES)))
    found = STRATEGIES["sobel"].score(seen).reshape(GRID)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]).expand(4, -1))


def halved(seen):
    """The view after pairs of neighbouring patches have merged into ten tokens."""
    return dataclasses.replace(
        seen,
        tokens=seen.tokens[:, :10],
        features=seen.features[:, :10],
        size=torch.full((2, 10), 2.0),
        attention=None,
        importance=None,
        source_map=(torch.arange(PATCHES) // 2).expand(2, -1),
    )


def stretched(raw):
    low, high = raw.amin(1, keepdim=True), raw.amax(1, keepdim=True)
    return (raw - low) / (high - low + 1e-6)


def test_after_a_merge_the_sobel_score_is_that_of_the_tokens_spread_over_their_patches():
    merged = halved(view())
    spread = merged.tokens.mean(2).repeat_interleave(2, dim=1)
    expected = stretched(sobel_energy(spread, GRID)).reshape(2, 10, 2).mean(2)
    torch.testing.assert_close(STRATEGIES["sobel"].score(merged), expected, atol=1e-5, rtol=1e-5)


@few
@problems
def test_the_detail_of_all_channels_is_the_mean_energy_that_a_high_pass_fft_leaves(seed, kept):
    seen = view(seed)
    normalised = (seen.tokens - seen.tokens.mean(2, keepdim=True)) / (
        seen.tokens.var(2, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    sources = {"stream_detail": seen.tokens, "normalised_detail": normalised, "feature_detail": seen.features}
    for name, features in sources.items():
        expected = stretched(twins.fft_energy(features, GRID, 1))
        torch.testing.assert_close(STRATEGIES[name].score(seen), expected, atol=1e-4, rtol=1e-4)


def test_after_a_merge_the_detail_is_that_of_the_tokens_spread_over_their_patches():
    merged = halved(view())
    energy = twins.fft_energy(merged.tokens.repeat_interleave(2, dim=1), GRID, 1)
    expected = stretched(energy).reshape(2, 10, 2).mean(2)
    torch.testing.assert_close(STRATEGIES["stream_detail"].score(merged), expected, atol=1e-4, rtol=1e-4)


def test_a_block_sees_the_normalised_detail_and_not_the_channel_mean():
    seen = view()
    shifted = dataclasses.replace(seen, tokens=seen.tokens + torch.randn(2, PATCHES, 1))
    found, again = (STRATEGIES["normalised_detail"].score(one) for one in (seen, shifted))
    torch.testing.assert_close(found, again, atol=1e-4, rtol=1e-4)


def test_the_pixel_detail_marks_the_patch_whose_pixels_differ():
    pictures = torch.zeros(2, 3, 8, 10)
    pictures[:, :, 2, 4] = 1.0  # patch (1, 2) of 2 × 2 pixels
    found = STRATEGIES["pixel_detail"].score(dataclasses.replace(view(), images=pictures))
    assert found.argmax(dim=1).tolist() == [7, 7]
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@few
@problems
def test_detail_weighted_merging_leans_towards_the_token_of_higher_score(seed, kept):
    seen = view(seed)
    tokens, size, row = reduced("detail_weighted", seen, kept)
    weight = seen.size * (1 + STRATEGIES["lfgm"].score(seen))
    for image in range(2):
        expected, _ = twins.merge_by_loop(seen.tokens[image], weight[image].tolist(), row[image].tolist())
        torch.testing.assert_close(tokens[image], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(size.sum(1), seen.size.sum(1))


def test_random_merging_merges_every_source_equally_often():
    torch.manual_seed(0)
    seen = view(batch=500)
    row = STRATEGIES["random_merge"].assign(seen, None, PATCHES - 3)
    merged = row[:, 1::2] >= 7  # seven sources stay, in order, before the destinations
    assert merged.sum(1).tolist() == [3] * 500
    assert all(100 < count < 200 for count in merged.sum(0).tolist()), "150 expected, standard deviation 10"


def test_a_pooled_score_is_the_first_one_over_the_patches_of_each_token(monkeypatch):
    first = torch.linspace(0, 1, 36)[None]
    asked, used = [], []

    def once(seen):
        asked.append(seen.tokens.shape[1])
        return first

    def spy(seen, score, kept):
        used.append((seen.source_map, score))
        return STRATEGIES["none"].assign(seen, score, kept)

    monkeypatch.setitem(STRATEGIES, "lfgm", dataclasses.replace(STRATEGIES["lfgm"], score=once, assign=spy))
    with torch.no_grad():
        tiny(rescore="pool")(images(1))
    assert asked == [36]
    source_map, score = used[1]
    for token in range(25):
        torch.testing.assert_close(score[0, token], first[0, source_map[0] == token].mean())


@few
@problems
def test_a_rank_is_the_share_of_lower_scores(seed, kept):
    score = torch.rand(2, kept, generator=torch.Generator().manual_seed(seed)).mul(8).round()
    expected = [[sum(other < one for other in row) / (kept - 1) for one in row] for row in score.tolist()]
    torch.testing.assert_close(rank(score), torch.tensor(expected))


def test_the_rank_takes_the_place_of_the_score_in_the_penalty(monkeypatch):
    used = []

    def spy(seen, score, kept):
        used.append(score)
        return STRATEGIES["none"].assign(seen, score, kept)

    monkeypatch.setitem(STRATEGIES, "lfgm", dataclasses.replace(STRATEGIES["lfgm"], assign=spy))
    with torch.no_grad():
        tiny(score_scale="rank")(images(1))
    torch.testing.assert_close(used[0].sort(1).values, torch.linspace(0, 1, 36)[None])


def test_a_mean_protects_a_pair_less_than_a_maximum():
    features, score = torch.ones(1, 4, 3), torch.tensor([[0.0, 1.0, 0.5, 0.0]])
    larger = penalised_similarity(features, score, 1.0)
    mean = penalised_similarity(features, score, 1.0, pair_score="mean")
    torch.testing.assert_close(larger[0], torch.tensor([[0.0, 0.0], [1.0, 0.5]]))
    torch.testing.assert_close(mean[0], torch.tensor([[0.5, 0.25], [1.0, 0.75]]))


def test_class_importance_is_attention_times_the_norm_of_the_value_head_by_head(monkeypatch):
    seen = []
    spy = dataclasses.replace(STRATEGIES["tomecis"], score=seen.append)
    monkeypatch.setitem(STRATEGIES, "tomecis", spy)
    model = tiny(scoring="tomecis", merge_layers=(0,))
    with torch.no_grad():
        model(images(1))
        vit, block = model.vit, model.vit.blocks[0]
        x = block.norm1(vit.norm_pre(vit._pos_embed(vit.patch_embed(images(1)))))
    expected = twins.class_importance(block.attn, x[0])
    torch.testing.assert_close(seen[0].importance[0], expected[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("clamp", "elsewhere"), [(False, -1.0), (True, 0.0)])
def test_a_protected_destination_attracts_dissimilar_sources_unless_cosines_are_clamped(clamp, elsewhere):
    features = torch.ones(1, PATCHES, 6)
    features[:, 1::2] = -1  # every source points away from every destination
    score = torch.zeros(1, PATCHES)
    score[0, 6] = 1.0  # the destination with index 3
    similarity = penalised_similarity(features, score, 1.0, clamp=clamp)[0]
    others = torch.arange(similarity.shape[1]) != 3
    torch.testing.assert_close(similarity[:, 3], torch.zeros(len(similarity)))
    torch.testing.assert_close(similarity[:, others], torch.full_like(similarity[:, others], elsewhere))


@pytest.mark.parametrize(
    ("scoring", "changes"),
    [
        *((name, {}) for name, strategy in STRATEGIES.items() if strategy.exports),
        ("lfgm", {"merge_counts": (9, 7), "cosine": "clamped"}),
        ("lfgm", {"score_scale": "rank", "pair_score": "mean", "rescore": "pool"}),
    ],
)
def test_the_exportable_strategies_export_as_one_graph_without_gather_scatter_or_fft(scoring, changes):
    model = tiny(scoring=scoring, **changes)
    program = torch.export.export(
        model, (images(2),), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    )
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in targets if any(word in name for word in ("scatter", "gather", "fft", "index"))]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(5)).logits, model(images(5)).logits, atol=1e-5, rtol=1e-5)
