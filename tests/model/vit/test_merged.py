import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import nn
from torchvision.models import vit_b_16

from model import FreqMergeViT, ModelConfig, build, load_checkpoint, merge_tokens, save_checkpoint
from model.config import MergeConfig
from model.errors import BackboneError, ConfigError
from model.merging.frequency import low_pass_basis
from model.merging.matching import merge_rotary
from model.merging.schedule import default_layers, merged_per_block
from tests.model.tiny import images

SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 2, "num_classes": 7}

FAMILIES = {
    "ViT": ("vit_small_patch16_224", {}),
    "AugReg": ("vit_small_patch16_224.augreg_in21k_ft_in1k", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "DeiT": ("deit_tiny_patch16_224", {}),
    "DeiT distilled": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT III": ("deit3_small_patch16_224", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {}),
    "BEiT-3": ("beit3_base_patch16_224", {}),
    "EVA": ("eva_large_patch14_196", {}),
    "EVA giant": ("eva_giant_patch14_224", {}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "EVA-02, separate q/k/v": ("eva02_base_patch14_224", {}),
    "EVA-02 CLIP, post-norm": ("eva02_enormous_patch14_clip_224", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {"dynamic_img_size": False}),
    "RoPE-ViT, learned angles": ("vit_base_patch16_rope_mixed_224", {}),
    "Perception Encoder": ("vit_pe_core_base_patch16_224", {}),
    "grouped queries": ("eva02_tiny_patch14_224", {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1}),
}
ROTARY = ["EVA-02", "EVA-02, separate q/k/v", "DINOv3", "RoPE-ViT, learned angles", "grouped queries"]


def model_of(family, **changes):
    """A small model of the family in evaluation mode, 36 patches, its random weights wide enough to matter."""
    name, arguments = FAMILIES[family]
    side = 6 * (14 if "patch14" in name else 16)
    torch.manual_seed(0)
    vit = timm.create_model(name, **{**SMALL, "img_size": side, **arguments, **changes}).eval()
    with torch.no_grad():
        for key, parameter in vit.named_parameters():
            parameter.mul_(4) if parameter.ndim > 1 else None
            if "gamma" in key:
                parameter.fill_(0.5)
    return vit, images(3, side)


@pytest.mark.parametrize("family", FAMILIES)
def test_keep_rate_one_equals_the_model_itself(family):
    vit, x = model_of(family)
    with torch.no_grad():
        torch.testing.assert_close(merge_tokens(vit, keep_rate=1.0)(x), vit(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_follows_the_schedule_and_every_patch_has_one_owner_of_the_right_size(family):
    vit, x = model_of(family)
    fast = merge_tokens(vit)
    with torch.no_grad():
        logits, told, stream = fast(x), fast.explain(x), fast._pass(x).stream
    assert fast.schedule == (36, 25, 18, 13)
    assert logits.shape == vit(x).shape
    assert logits.isfinite().all()
    assert not torch.allclose(logits, vit(x), atol=1e-9)
    torch.testing.assert_close(told.logits, logits)
    for image, size in zip(told.source_maps, stream.size, strict=True):
        assert [sorted(set(row.tolist())) for row in image] == [list(range(left)) for left in (25, 18, 13)]
        assert torch.bincount(image[-1]).tolist() == size.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_features_have_the_models_shape_and_its_own_head_gives_the_same_answer(family):
    vit, x = model_of(family)
    fast = merge_tokens(vit)
    with torch.no_grad():
        features = fast.forward_features(x)
        assert features.shape == vit.forward_features(x).shape
        torch.testing.assert_close(fast.forward_head(features), fast(x), atol=1e-4, rtol=1e-4)
        owners = fast.explain(x).source_map
    patches = features[:, vit.num_prefix_tokens :]
    for image, owner in zip(patches, owners, strict=True):
        assert torch.equal(image[owner == 0], image[owner == 0][:1].expand(int((owner == 0).sum()), -1))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter_that_the_model_itself_trains(family):
    vit, x = model_of(family)
    fast = merge_tokens(vit).train()
    vit(x).square().sum().backward()
    wanted = {name for name, parameter in vit.named_parameters() if parameter.grad is not None}
    vit.zero_grad()
    fast(x).square().sum().backward()
    assert {name for name, parameter in vit.named_parameters() if parameter.grad is not None} == wanted


def test_weights_are_shared_and_the_model_keeps_working_without_merging():
    vit, x = model_of("ViT")
    with torch.no_grad():
        before = vit(x)
        fast = merge_tokens(vit)
        fast(x)
        assert fast.vit is vit
        assert all(one is other for one, other in zip(fast.parameters(), vit.parameters(), strict=True))
        assert torch.equal(vit(x), before)
        vit.head.bias.add_(1)
        torch.testing.assert_close(fast(x), merge_tokens(copy.deepcopy(vit))(x))


def test_it_starts_in_the_models_own_mode():
    vit, _ = model_of("ViT")
    assert not merge_tokens(vit).training
    assert merge_tokens(vit.train()).training


def test_without_a_head_a_call_returns_features_and_without_pooling_all_tokens():
    vit, x = model_of("ViT", num_classes=0)
    bare, _ = model_of("ViT", num_classes=0, global_pool="")
    with torch.no_grad():
        assert merge_tokens(vit)(x).shape == vit(x).shape == (3, 48)
        assert merge_tokens(bare)(x).shape == bare(x).shape == (3, 37, 48)
        torch.testing.assert_close(merge_tokens(bare, keep_rate=1.0)(x), bare(x))


def test_a_distilled_deit_returns_both_heads_while_it_trains_by_distillation_and_their_mean_else():
    vit, x = model_of("DeiT distilled")
    fast = merge_tokens(vit, keep_rate=1.0).train()
    assert torch.is_tensor(fast(x))
    vit.distilled_training = True
    for found, wanted in zip(fast(x), vit(x), strict=True):
        torch.testing.assert_close(found, wanted)
    heads = merge_tokens(vit)(x)
    torch.testing.assert_close(merge_tokens(vit).eval()(x), (heads[0] + heads[1]) / 2)


def test_the_logit_of_merged_tokens_is_the_mean_over_all_pairs_of_their_patches():
    torch.manual_seed(0)
    angle = torch.randn(5, 3)
    rotary = torch.cat([angle.sin(), angle.cos()], dim=1)[None, None, None]
    groups = [[0, 2], [1], [3, 4]]
    assignment = torch.tensor([[[float(patch in group) for patch in range(5)] for group in groups]])
    size = torch.tensor([[1.0, 2.0, 3.0, 1.0, 1.0]])
    merged = merge_rotary(rotary, size, assignment)[0, 0, 0]

    def logit(query, key, one, other):
        """Both as complex numbers, turned by one row of sines and cosines each."""
        turned = query * torch.complex(one[3:], one[:3]) * (key * torch.complex(other[3:], other[:3])).conj()
        return turned.sum().real

    query, key = torch.randn(2, 3, dtype=torch.complex64)
    for own, mine in enumerate(groups):
        for other, theirs in enumerate(groups):
            pairs = [(i, j, float(size[0, i] * size[0, j])) for i in mine for j in theirs]
            total = sum(weight for _, _, weight in pairs)
            each = [w * logit(query, key, rotary[0, 0, 0, i], rotary[0, 0, 0, j]) for i, j, w in pairs]
            torch.testing.assert_close(logit(query, key, merged[own], merged[other]), sum(each) / total)


@pytest.mark.parametrize("family", ROTARY)
def test_a_merged_token_turns_by_the_mean_of_its_patches(family):
    vit, x = model_of(family)
    seen = []
    vit.blocks[3].register_forward_pre_hook(lambda _, given, named: seen.append(named["rope"]), with_kwargs=True)
    with torch.no_grad():
        fast = merge_tokens(vit, merge_layers=(0, 1, 2))
        owners = fast.explain(x).source_map
        vit(x)
    merged, patches = seen
    for found, owner in zip(merged, owners, strict=True):
        for token in range(fast.schedule[-1]):
            torch.testing.assert_close(
                found[:, token], patches[..., owner == token, :].mean(dim=-2).expand_as(found[:, token])
            )


def test_eva_exports_as_one_graph_with_a_dynamic_batch():
    vit, x = model_of("EVA-02")
    fast = merge_tokens(vit)
    program = torch.export.export(fast, (x,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=64)}})
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in targets if "scatter" in name or "gather" in name or "fft" in name]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x[:2]), fast(x[:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["EVA-02", "DINOv3"])
def test_in_half_precision_a_rotary_model_answers_in_its_own_type(family):
    vit, x = model_of(family)
    with torch.no_grad():
        logits = merge_tokens(vit.bfloat16())(x.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_an_eva_is_built_saved_and_loaded_as_a_checkpoint(tmp_path):
    args = {"embed_dim": 48, "depth": 4, "num_heads": 2}
    config = ModelConfig(
        backbone="eva02_tiny_patch14_224", backbone_args=args, image_size=84, merge_layers=(1, 2), num_classes=100
    )
    model = build(config).eval()
    save_checkpoint(tmp_path / "eva.safetensors", model)
    loaded = load_checkpoint(tmp_path / "eva.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded.model(images(2, 84)).logits, model(images(2, 84)).logits)
    assert loaded.manifest.config == config
    assert loaded.model.schedule == (36, 25, 18, 18)


def test_a_dropped_strategy_option_reaches_the_merging():
    vit, x = model_of("ViT")
    tome = merge_tokens(vit, alpha=0.0, scoring="none")
    assert tome.config == MergeConfig(merge_layers=(1, 2, 3), alpha=0.0, scoring="none")
    with torch.no_grad():
        torch.testing.assert_close(tome(x), merge_tokens(vit, alpha=0.0)(x))


@pytest.mark.parametrize(
    ("r", "counts"),
    [
        (3, (3,) * 4),
        ((3, 0), (3, 3, 3, 3)),
        ((3, -1), (6, 4, 2, 0)),
        ((3, 1), (0, 2, 4, 6)),
        ((3, 0.5), (1, 2, 3, 5)),
        ([5, 2], (5, 2, 0, 0)),
        ([], (0,) * 4),
    ],
)
def test_r_is_a_count_a_slope_or_a_list_that_zeros_complete(r, counts):
    assert merged_per_block(r, 4) == counts
    left, expected = 36, []
    for count in counts:
        left -= count
        expected.append(left)
    vit, x = model_of("ViT")
    fast = merge_tokens(vit, r=r)
    assert list(fast.schedule) == expected
    with torch.no_grad():
        assert fast(x).isfinite().all()


def test_at_most_half_of_the_tokens_merge_in_a_block():
    vit, _ = model_of("ViT")
    assert merge_tokens(vit, r=30).schedule == (18, 9, 5, 3)


@pytest.mark.parametrize("r", [-1, 2.5, True, (3, 2), (3, 0, 0), [1, 2, 3, 4, 5], [3, -1], "8"])
def test_another_r_is_refused_with_what_it_may_be(r):
    vit, _ = model_of("ViT")
    with pytest.raises(ConfigError, match=r"r: expected a count .* or a list of at most 4 counts, found "):
        merge_tokens(vit, r=r)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"r": 8, "keep_rate": 0.7}, "expected r alone, found keep_rate as well"),
        ({"r": 8, "keep_rate": 0.7, "merge_layers": [1]}, "expected r alone, found keep_rate and merge_layers as well"),
        ({"r": 8, "merge_counts": [1]}, "expected r alone, found merge_counts as well"),
        ({"keep_rate": 0.7, "merge_layers": [1], "merge_counts": [3]}, "keep_rate and merge_counts: .* found both"),
        ({"merge_layers": [4]}, r"0..3 for a backbone of depth 4, found \[4\]"),
        ({"keep_rate": 0.3}, "keep_rate: expected 0.5 to 1, found 0.3"),
        ({"alfa": 0.3}, "alfa: unknown field of MergeConfig; known are merge_layers"),
    ],
)
def test_contradicting_arguments_are_refused_by_name(arguments, words):
    vit, _ = model_of("ViT")
    with pytest.raises(ConfigError, match=words):
        merge_tokens(vit, **arguments)


def test_the_default_blocks_are_the_seeds_in_proportion_to_the_depth():
    assert default_layers(12) == ModelConfig().merge_layers == (4, 6, 8, 10)
    assert default_layers(24) == (8, 12, 16, 20)
    assert default_layers(4) == (1, 2, 3)
    assert default_layers(1) == (0,)


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.module = inner


class Own(VisionTransformer):
    def forward_features(self, x, attn_mask=None, is_causal=False):
        return super().forward_features(x, attn_mask, is_causal)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224"),
            "found SwinTransformer, which attends within windows",
        ),
        (lambda: timm.create_model("convnext_atto"), "found ConvNeXt, which is a convolutional network"),
        (lambda: timm.create_model("resnet10t"), "found ResNet, which is a convolutional network"),
        (lambda: timm.create_model("beit_base_patch16_224", depth=1), "found Beit, which adds a bias for every pair"),
        (
            lambda: timm.create_model("naflexvit_base_patch16_gap", depth=1),
            "found NaFlexVit, which takes images of any",
        ),
        (lambda: timm.create_model("cait_xxs24_224"), "found Cait; models without one flat sequence"),
        (lambda: Wrapped(model_of("ViT")[0]), "found Wrapped around one; merge the VisionTransformer inside it"),
        (lambda: Own(img_size=96, **SMALL), "found Own, which has a forward of its own"),
        (lambda: model_of("ViT", dynamic_img_size=True)[0], "found dynamic_img_size=True"),
        (lambda: model_of("ViT", patch_drop_rate=0.5)[0], "found patch_drop_rate > 0"),
        (lambda: model_of("EVA-02", patch_drop_rate=0.5)[0], "found patch_drop_rate > 0"),
        (lambda: merge_tokens(model_of("ViT")[0]), "found MergedViT, which merges; pass its .vit"),
        (lambda: vit_b_16(), "found torchvision's VisionTransformer; make timm's model of that shape"),
        (lambda: "vit_small_patch16_224", "found the name 'vit_small_patch16_224'; make the model first"),
        (lambda: None, "found None; pass a model that timm made"),
        (lambda: {"a": 1}, "found an object of type dict; pass a model that timm made"),
    ],
)
def test_what_cannot_merge_is_refused_with_the_reason(make, words):
    with pytest.raises(BackboneError, match=words):
        merge_tokens(make())


def test_its_basis_follows_the_images_to_their_device():
    vit, x = model_of("ViT")
    fast = merge_tokens(vit)
    with torch.no_grad():
        logits = fast(x)
        fast.basis = fast.basis.to("meta")
        assert torch.equal(fast(x), logits)
    assert torch.equal(fast.basis, low_pass_basis((6, 6), 2).float())


def test_a_cast_leaves_the_basis_in_float32():
    vit, _ = model_of("ViT")
    assert torch.equal(merge_tokens(vit).half().basis, low_pass_basis((6, 6), 2).float())


def test_a_model_on_the_meta_device_merges_once_it_is_filled():
    vit, x = model_of("ViT")
    low_pass_basis.cache_clear()
    with torch.device("meta"):
        fast = merge_tokens(timm.create_model("vit_small_patch16_224", img_size=96, **SMALL).eval())
        assert fast(torch.empty(2, 3, 96, 96)).shape == (2, 7)
    fast.to_empty(device="cpu").vit.load_state_dict(vit.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fast(x), merge_tokens(vit)(x))


@pytest.mark.parametrize("through", ["the merged model", "the model itself"])
@pytest.mark.parametrize("family", ["ViT", "EVA-02"])
def test_another_input_size_changes_grid_schedule_and_score(family, through):
    vit, _ = model_of(family)
    fast = merge_tokens(vit)
    side = 8 * vit.patch_embed.patch_size[0]
    (fast if through == "the merged model" else vit).set_input_size((side, side))
    x = images(2, side)
    with torch.no_grad():
        answer = fast.explain(x)
        torch.testing.assert_close(fast(x), merge_tokens(vit)(x))
    assert fast.grid == (8, 8)
    assert fast.schedule == (64, 45, 31, 22)
    assert answer.frequency_score.shape == (2, 64)


def test_a_built_model_refuses_a_grid_that_is_not_its_configs():
    args = {"embed_dim": 48, "depth": 4, "num_heads": 2}
    model = build(ModelConfig(backbone_args=args, image_size=96, merge_layers=(1, 2)))
    model.vit.set_input_size((128, 128))
    with pytest.raises(ConfigError, match="expected the 6x6 grid that the model was built with, found 8x8"):
        model(images(1, 128))


@pytest.mark.parametrize("layer_decay", [None, 0.75])
@pytest.mark.parametrize("family", ["ViT", "EVA-02", "DINOv2 with registers"])
def test_timms_optimizers_see_the_merged_model_as_the_model(family, layer_decay):
    vit, _ = model_of(family)

    def groups(model):
        made = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay)
        return [
            ([id(one) for one in group["params"]], group["weight_decay"], group.get("lr_scale"))
            for group in made.param_groups
        ]

    assert groups(merge_tokens(vit)) == groups(vit)


def test_hooks_on_a_merging_block_fire_once_and_see_and_change_what_passes():
    vit, x = model_of("ViT")
    fast, block, seen = merge_tokens(vit), vit.blocks[1], []
    with torch.no_grad():
        before = fast(x)
    handles = [
        block.register_forward_pre_hook(lambda module, given: seen.append((module, given[0].shape))),
        block.register_forward_pre_hook(lambda module, given, named: seen.append(named), with_kwargs=True),
        block.register_forward_hook(lambda module, given, after: seen.append((module, given[0].shape, after.shape))),
        block.register_forward_hook(lambda module, given, named, after: seen.append(named), with_kwargs=True),
    ]
    with torch.no_grad():
        assert torch.equal(fast(x), before)
    assert seen == [(block, (3, 37, 48)), {}, (block, (3, 37, 48), (3, 26, 48)), {}]
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        block.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
        doubled = fast(x)
        block.register_forward_hook(lambda module, given, after: after * 0)
        emptied = fast(x)
    assert not torch.allclose(doubled, before)
    assert torch.equal(emptied, emptied[:1].expand_as(emptied)), "nothing of the pictures is left after the block"


def test_backward_hooks_on_a_merging_block_see_its_gradients():
    vit, x = model_of("ViT")
    seen = []
    vit.blocks[1].register_full_backward_hook(lambda module, into, out: seen.append((into[0].shape, out[0].shape)))
    merge_tokens(vit)(x).sum().backward()
    assert seen == [((3, 37, 48), (3, 26, 48))]


def test_a_merged_model_tells_what_timms_helpers_ask_for():
    vit, _ = model_of("ViT")
    fast = merge_tokens(vit)
    assert timm.data.resolve_model_data_config(fast) == timm.data.resolve_model_data_config(vit)
    assert (fast.num_classes, fast.num_features, fast.num_prefix_tokens) == (7, 48, 1)
    fast.reset_classifier(3)
    assert fast.get_classifier() is vit.head
    assert fast.num_classes == vit.num_classes == 3


def test_timms_state_loads_into_a_built_model_of_the_same_shape():
    vit, x = model_of("EVA-02")
    built = build(
        ModelConfig(
            backbone="eva02_tiny_patch14_224",
            backbone_args={"embed_dim": 48, "depth": 4, "num_heads": 2},
            num_classes=7,
            image_size=84,
            merge_layers=(1, 2, 3),
        )
    ).eval()
    built.vit.load_state_dict(vit.state_dict())
    assert isinstance(built, FreqMergeViT)
    with torch.no_grad():
        torch.testing.assert_close(built(x).logits, merge_tokens(vit)(x))
