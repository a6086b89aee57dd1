import dataclasses

import pytest
import timm
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer

from model import FreqMergeViT, ModelConfig, build
from model.config import SCORE_NAMES
from model.errors import BackboneError, ConfigError
from model.merging.frequency import energy_score, frequency_score, low_pass_basis, score_values
from model.merging.strategies import STRATEGIES
from tests.model.merging.twins import tome_logits
from tests.model.tiny import TINY, images, tiny

VARIANTS = {
    "class token": {},
    "average pooling": {"global_pool": "avg", "class_token": False},
    "average pooling over prefix": {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True},
    "average and maximum": {"global_pool": "avgmax"},
    "attention pooling": {"global_pool": "map", "class_token": False},
    "layer scale": {"init_values": 0.3},
    "q/k norm": {"qk_norm": True},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "pre-norm": {"pre_norm": True},
}


def variant(name, **changes):
    return tiny(backbone_args={**TINY.backbone_args, **VARIANTS[name]}, **changes)


@pytest.mark.parametrize("name", VARIANTS)
def test_keep_rate_one_equals_the_unmodified_timm_model(name):
    model = variant(name, keep_rate=1.0)
    with torch.no_grad():
        torch.testing.assert_close(model(images(3)).logits, model.vit(images(3)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("backbone", "side"),
    [
        ("vit_small_patch16_224", 224),
        ("deit_tiny_distilled_patch16_224", 224),
        ("vit_small_patch14_reg4_dinov2", 112),
    ],
)
def test_full_size_timm_models_are_unmodified_at_keep_rate_one(backbone, side):
    torch.manual_seed(0)
    model = build(ModelConfig(backbone=backbone, image_size=side, keep_rate=1.0)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images(1, side)).logits, model.vit(images(1, side)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["class token", "average pooling", "layer scale", "q/k norm", "registers"])
def test_alpha_zero_is_tome_end_to_end(name):
    model = variant(name, alpha=0.0)
    x = images(2)
    with torch.no_grad():
        output = model(x)
    for index, image in enumerate(x):
        logits, owners = tome_logits(model.vit, image, list(model.config.merge_layers), list(model.schedule))
        torch.testing.assert_close(output.logits[index], logits, atol=2e-5, rtol=1e-4)
        assert output.source_map[index].tolist() == owners


@pytest.mark.parametrize("name", ["class token", "average pooling", "registers"])
def test_a_constant_count_in_every_block_is_tome_as_its_paper_runs_it(name):
    model = variant(name, alpha=0.0, merge_layers=(0, 1, 2, 3), merge_counts=(7, 7, 7, 7))
    assert model.schedule == (29, 22, 15, 8)
    x = images(2)
    with torch.no_grad():
        output = model(x)
    for index, image in enumerate(x):
        logits, owners = tome_logits(model.vit, image, [0, 1, 2, 3], list(model.schedule))
        torch.testing.assert_close(output.logits[index], logits, atol=2e-5, rtol=1e-4)
        assert output.source_map[index].tolist() == owners


@pytest.mark.parametrize("name", ["class token", "average pooling"])
def test_counts_of_zero_are_the_unmodified_timm_model(name):
    model = variant(name, merge_counts=(0, 0))
    with torch.no_grad():
        torch.testing.assert_close(model(images(3)).logits, model.vit(images(3)), atol=1e-5, rtol=0)


def test_the_strategy_none_is_alpha_zero():
    with torch.no_grad():
        plain, none = tiny(alpha=0.0)(images(2)), tiny(scoring="none")(images(2))
    torch.testing.assert_close(plain.logits, none.logits)


@pytest.mark.parametrize("scoring", ["lfgm", "attention", "random"])
def test_each_strategy_reduces_tokens_to_the_schedule_and_differs_from_tome(scoring):
    torch.manual_seed(0)
    model = tiny(scoring=scoring, alpha=1.0)
    with torch.no_grad():
        output, tome = model(images(4)), tiny(scoring="none")(images(4))
    assert model.schedule == (36, 25, 18, 18)
    assert output.source_map.max() == 17
    assert not torch.allclose(output.logits, tome.logits)


def test_random_pruning_drops_patches_and_says_so_in_the_source_map():
    with torch.no_grad():
        source_map = tiny(scoring="random")(images(4)).source_map
    assert (source_map == -1).sum(1).tolist() == [18] * 4
    assert all(sorted(row[row >= 0].tolist()) == list(range(18)) for row in source_map)


def residual_stream(model, layer, x):
    """Patch tokens between attention and MLP of a block, before anything merges there."""
    caught = []
    model.vit.blocks[layer].norm2.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        model(x)
    return caught[0][:, model.vit.num_prefix_tokens :]


@pytest.mark.parametrize("keep_rate", [0.7, 1.0])
@pytest.mark.parametrize("scoring", ["lfgm", "none"])
def test_the_frequency_score_is_that_of_the_first_merging_block_at_any_keep_rate(keep_rate, scoring):
    expected = frequency_score(residual_stream(tiny(keep_rate=1.0), 1, images(2)), (6, 6), 2)
    with torch.no_grad():
        output = tiny(keep_rate=keep_rate, scoring=scoring)(images(2))
    torch.testing.assert_close(output.frequency_score, expected)


@pytest.mark.parametrize("keep_rate", [0.7, 1.0])
@pytest.mark.parametrize("scoring", ["lfgm", "none", "stream_detail", "attention"])
def test_the_energy_is_that_of_the_first_merging_block_whatever_protects_the_tokens(keep_rate, scoring):
    stream = residual_stream(tiny(keep_rate=1.0), 1, images(2))
    expected = energy_score(stream, low_pass_basis((6, 6), 2).float())
    with torch.no_grad():
        output = tiny(keep_rate=keep_rate, scoring=scoring)(images(2), trace=True)
    torch.testing.assert_close(output.energy, expected)
    assert (output.energy.amin(dim=1) == 0).all()
    assert (output.energy.amax(dim=1) > 0.999).all()


def test_every_answer_has_its_scores_in_the_order_of_their_names():
    with torch.no_grad():
        output = tiny()(images(2))
    assert output.frequency_scores.shape == (2, len(SCORE_NAMES), 36)
    assert SCORE_NAMES == ("lfgm", "energy")
    assert torch.equal(output.frequency_scores, torch.stack([output.frequency_score, output.energy], dim=1))
    assert not torch.allclose(output.frequency_score, output.energy)


def test_the_energy_is_what_the_strategy_stream_detail_protects_by_at_first(monkeypatch):
    seen = []
    own = STRATEGIES["stream_detail"]
    spy = dataclasses.replace(own, score=lambda view: seen.append(own.score(view)) or seen[-1])
    monkeypatch.setitem(STRATEGIES, "stream_detail", spy)
    with torch.no_grad():
        output = tiny(scoring="stream_detail")(images(2))
    torch.testing.assert_close(output.energy, seen[0])


def test_nothing_is_learnt_from_the_energy():
    model = tiny().train()
    weighted = torch.rand(2, 36)
    (model(images(2)).energy * weighted).sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    (model(images(2)).frequency_score * weighted).sum().backward()
    assert model.vit.blocks[0].attn.qkv.weight.grad.any()


def test_token_sizes_and_source_maps_follow_the_schedule():
    with torch.no_grad():
        output = tiny()(images(3), trace=True)
    assert [(step.layer, int(step.source_map.max()) + 1) for step in output.trace] == [(1, 25), (2, 18)]
    for step in output.trace:
        assert all(len(set(row.tolist())) == int(step.source_map.max()) + 1 for row in step.source_map)
    torch.testing.assert_close(output.trace[0].score, output.frequency_score)
    assert torch.equal(output.source_maps, torch.stack([step.source_map for step in output.trace], dim=1))
    assert torch.equal(output.source_map, output.trace[-1].source_map)


def test_tracing_does_not_change_the_answer():
    model = tiny()
    with torch.no_grad():
        torch.testing.assert_close(model(images(2)).logits, model(images(2), trace=True).logits)
        assert model(images(2)).trace == ()


def test_after_a_merge_tokens_are_spread_over_their_patches_and_scored_on_the_grid_again():
    once = tiny(merge_layers=(1,))
    tokens = residual_stream(once, 2, images(2))
    with torch.no_grad():
        owners = once(images(2)).source_map
        steps = tiny()(images(2), trace=True).trace
    spread = torch.stack([image[owner] for image, owner in zip(tokens, owners, strict=True)])
    torch.testing.assert_close(steps[1].score, frequency_score(spread, (6, 6), 2))


def test_pooling_the_first_score_is_another_choice():
    with torch.no_grad():
        steps = tiny(rescore="pool")(images(2), trace=True).trace
    torch.testing.assert_close(steps[0].score, steps[1].score)


@pytest.mark.parametrize("scoring", ["lfgm", "none", "attention"])
def test_images_of_a_batch_do_not_influence_each_other(scoring):
    model = tiny(scoring=scoring)
    with torch.no_grad():
        together = model(images(4))
        alone = [model(image[None]) for image in images(4)]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), atol=1e-5, rtol=1e-5)
    assert torch.equal(together.source_map, torch.cat([one.source_map for one in alone]))


def test_state_dict_keys_end_in_timms_own_so_timm_weights_load():
    model = tiny()
    other = timm.create_model(TINY.backbone, num_classes=100, img_size=TINY.image_size, **TINY.backbone_args)
    assert {key.removeprefix("vit.") for key in model.state_dict()} == set(other.state_dict())
    model.vit.load_state_dict(other.state_dict())


def test_gradients_reach_every_parameter_through_the_merges():
    model = tiny().train()
    model(images(2)).logits.square().sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_the_model_exports_as_one_graph_with_a_dynamic_batch():
    model = tiny()
    program = torch.export.export(
        model, (images(2),), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    )
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in targets if "scatter" in name or "gather" in name or "fft" in name]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(5)).logits, model(images(5)).logits, atol=1e-5, rtol=1e-5)


def test_half_precision_keeps_the_score_in_single_precision():
    model = tiny().to(torch.bfloat16)
    with torch.no_grad():
        output = model(images(2).bfloat16())
    assert output.logits.dtype == torch.bfloat16
    assert output.frequency_score.dtype == torch.float32
    assert output.energy.dtype == torch.float32
    stream = residual_stream(tiny(keep_rate=1.0).to(torch.bfloat16), 1, images(2).bfloat16())
    torch.testing.assert_close(output.energy, energy_score(stream.float(), model.basis))


def test_merge_layers_outside_the_depth_are_refused():
    with pytest.raises(ConfigError, match=r"0..3 for a backbone of depth 4, found \[4\]"):
        tiny(merge_layers=(1, 4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "vit_smal_patch16_224"}, "close names: vit_small_patch16_224"),
        ({"backbone": "resnet18", "backbone_args": {}}, "timm refuses|expected a timm VisionTransformer"),
        (
            {"backbone": "swin_tiny_patch4_window7_224", "backbone_args": {}, "image_size": 224},
            "found SwinTransformer",
        ),
        ({"backbone_args": {"dynamic_img_size": True}}, "found dynamic_img_size=True"),
        ({"backbone_args": {"depths": 3}}, "timm refuses"),
    ],
)
def test_a_backbone_that_cannot_merge_is_refused_with_the_reason(changes, words):
    with pytest.raises(BackboneError, match=words):
        build(TINY.replace(**changes))


def test_a_block_whose_keys_cannot_be_read_is_refused():
    vit = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=2, block_fn=ParallelScalingBlock
    )
    with pytest.raises(BackboneError, match=r"block 1: expected timm's Block .* found ParallelScalingBlock"):
        FreqMergeViT(vit, TINY)


class Gated(Attention):
    """timm's attention with its output gate, which no argument of the ViT turns on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, gated=True, **kwargs)


def test_gated_attention_is_unmodified_at_keep_rate_one():
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=2, attn_layer=Gated).eval()
    with torch.no_grad():
        same = FreqMergeViT(vit, TINY.replace(keep_rate=1.0))(images(2)).logits
        torch.testing.assert_close(same, vit(images(2)), atol=1e-5, rtol=0)


def test_post_norm_blocks_merge_too():
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=2, block_fn=ResPostBlock).eval()
    with torch.no_grad():
        same = FreqMergeViT(vit, TINY.replace(keep_rate=1.0))(images(2)).logits
        torch.testing.assert_close(same, vit(images(2)), atol=1e-5, rtol=0)
        assert FreqMergeViT(vit, TINY)(images(2)).source_map.max() == 17


def test_dropping_patches_while_merging_is_refused():
    with pytest.raises(ConfigError, match="patch_drop: expected 0 where tokens merge"):
        build(TINY, patch_drop=0.5)


def test_under_autocast_scores_are_those_of_float32_and_source_maps_hold_whole_indices(monkeypatch):
    seen = []
    spy = dataclasses.replace(
        STRATEGIES["lfgm"], score=lambda view: seen.append(view) or STRATEGIES["none"].score(view)
    )
    monkeypatch.setitem(STRATEGIES, "lfgm", spy)
    model = tiny(image_size=136)  # 289 patches: bfloat16 cannot count that far
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(images(2, 136), trace=True)
    assert torch.equal(found.frequency_score, score_values(seen[0].first.mean, model.basis))
    for step in found.trace:
        for owners in step.source_map:
            assert sorted(set(owners.tolist())) == list(range(model.schedule[step.layer]))


def test_a_move_to_where_the_model_is_leaves_every_tensor_at_its_address():
    model = build(ModelConfig(backbone="vit_tiny_patch16_224", image_size=32, merge_layers=(1,), hpf_radius=0))
    before = {name: buffer.data_ptr() for name, buffer in model.named_buffers()}
    model.to("cpu")
    assert {name: buffer.data_ptr() for name, buffer in model.named_buffers()} == before
    model.half().float()
    assert torch.equal(model.basis, build(model.config).basis)
