import json
import shutil
import sys
from pathlib import Path

import onnx
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models import vision_transformer

from model import ModelConfig
from tests.support import dinov2 as small
from training import convert
from training.convert import ConvertConfig, folded
from training.errors import WeightsError
from training.run import dinov2
from training.run.pretrained import origin, sha256, start_from

ARGS = {"depth": small.DEPTH, "embed_dim": small.DIM, "num_heads": small.HEADS}


@pytest.fixture(scope="module")
def model():
    return small.saliency()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    return small.export(model, tmp_path_factory.mktemp("onnx") / "saliency.onnx")


@pytest.fixture
def exported(written, tmp_path):
    """A file of its own for each test, some of which change it."""
    return Path(shutil.copy(written, tmp_path))


def timms(name, **arguments):
    """timm's model without a head, in evaluation mode."""
    return timm.create_model(name, num_classes=0, **{**ARGS, **arguments}).eval()


def pictures(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def changed(path, change):
    """The file after `change` has edited its graph."""
    loaded = onnx.load(path)
    change(loaded.graph)
    onnx.save(loaded, path)
    return path


def without(name):
    """Takes a stored tensor away."""

    def change(graph):
        (tensor,) = (each for each in graph.initializer if each.name == name)
        graph.initializer.remove(tensor)

    return change


def test_the_export_looks_like_the_real_one_its_matrices_and_positions_nameless(exported):
    names = [tensor.name for tensor in onnx.load(exported).graph.initializer]
    assert "backbone.encoder.layer.1.attention.attention.key.bias" in names
    assert not [
        name for name in names if name.startswith("backbone.encoder") and "norm" not in name and "weight" in name
    ]
    assert not [name for name in names if "position_embeddings" in name]
    assert sum(name.startswith("onnx::MatMul_") for name in names) == 6 * small.DEPTH + 2


@pytest.mark.parametrize(
    ("size", "constant"),
    [(small.SIZE, False), (small.SIZE, True), (small.GRID * small.PATCH, False)],
    ids=["positions resampled", "positions laid out as a grid and resampled", "positions as they are"],
)
def test_the_weights_read_are_the_exported_backbones_however_its_positions_were_exported(
    model, tmp_path, monkeypatch, size, constant
):
    monkeypatch.setattr(model.backbone.embeddings, "constant", constant)
    found = dinov2.read(small.export(model, tmp_path / "sized.onnx", size))
    assert found.head_dim == small.DIM // small.HEADS
    vit = timms("vit_small_patch14_dinov2", img_size=small.GRID * small.PATCH)
    vit.load_state_dict(found.state)
    images = pictures(small.GRID * small.PATCH)
    with torch.no_grad():
        assert torch.allclose(vit.forward_features(images), model.backbone(images), atol=1e-5)


def test_folding_the_layer_scale_changes_no_feature(exported):
    state = dinov2.read(exported).state
    size = small.GRID * small.PATCH
    scaled = timms("vit_small_patch14_dinov2", img_size=size)
    plain = timms("vit_small_patch16_224", patch_size=small.PATCH, img_size=size)
    scaled.load_state_dict(state)
    plain.load_state_dict(folded(state))
    images = pictures(size)
    with torch.no_grad():
        assert torch.allclose(plain.forward_features(images), scaled.forward_features(images), atol=1e-5)


def test_a_converted_file_starts_a_model_on_timms_own_resampling_and_says_where_it_comes_from(exported, tmp_path):
    out = tmp_path / "out.safetensors"
    config = ConvertConfig(onnx=exported, out=out, backbone_args=ARGS, image_size=64)
    told = convert.convert(config, "the command")
    assert "patch embedding resampled by timm from (48, 3, 14, 14) to (48, 3, 16, 16)" in told["done"]
    assert told["started_from"] == {"file": "saliency.onnx", "sha256": sha256(exported)}
    with safe_open(out, framework="pt") as opened:
        assert json.loads(opened.metadata()["freqmerge.origin"]) == told
    assert origin(str(out), "any") == {"file": "out.safetensors", "sha256": sha256(out), **told}

    vit = timms("vit_small_patch16_224", img_size=64)
    expected = vision_transformer.checkpoint_filter_fn(folded(dinov2.read(exported).state), vit)
    assert load_file(out).keys() == expected.keys() == vit.state_dict().keys()
    started = start_from(
        str(out), ModelConfig(image_size=64, backbone_args=ARGS, merge_layers=(1,)), drop_path=0.0, patch_drop=0.0
    )
    state = started.vit.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_command_writes_the_file_and_says_what_it_did(exported, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    words = f"--onnx {exported} --out {out} --image_size 64 --backbone_args depth=2 embed_dim=48 num_heads=3"
    convert.main(words.split())
    told = capsys.readouterr().out
    assert "layer scale folded into attn.proj and mlp.fc2 (exact)" in told
    assert f"written: {out}" in told
    assert origin(str(out), "any")["command"] == f"python -m training.convert {words}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 96}, r"tensors differ, first .*: expected .*96.*, found .*48"),
        ({"depth": 3}, r"first blocks\.2\..*: expected .*, found no such tensor"),
        ({"num_heads": 6}, "expected attention heads of 8 channels, .* found 16; name the --backbone_args num_heads"),
    ],
)
def test_a_backbone_of_another_shape_is_refused_naming_the_difference(exported, tmp_path, arguments, message):
    config = ConvertConfig(onnx=exported, out=tmp_path / "o.safetensors", backbone_args={**ARGS, **arguments})
    with pytest.raises(WeightsError, match=message):
        convert.convert(config, "")
    assert not config.out.exists()


BLOCK = "backbone.encoder.layer.1."


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            f"{BLOCK}layer_scale2.lambda1",
            rf"expected the tensor {BLOCK}layer_scale2\.lambda1 in .*, found none of that",
        ),
        (f"{BLOCK}mlp.fc1.bias", rf"expected the tensor {BLOCK}mlp\.fc1\.bias in "),
        ("backbone.layernorm.weight", r"expected the tensor backbone\.layernorm\.weight in "),
        ("backbone.embeddings.cls_token", r"expected one tensor embeddings\.cls_token in .*, found 0 \(others are "),
        ("backbone.encoder.layer.0.norm1.weight", r"expected blocks encoder\.layer\.0, 1, 2, … in .* numbers \[1\]"),
    ],
)
def test_a_file_that_lacks_a_tensor_is_refused_by_its_name(exported, missing, message):
    with pytest.raises(WeightsError, match=message):
        dinov2.read(changed(exported, without(missing)))


def test_a_bias_whose_matrix_is_computed_is_refused(exported):
    def change(graph):
        (add,) = (node for node in graph.node if f"{BLOCK}mlp.fc1.bias" in node.input)
        (product,) = (node for node in graph.node if node.output[0] in add.input)
        without(product.input[1])(graph)

    with pytest.raises(WeightsError, match=r"expected one matrix in the product that .*fc1\.bias is added to .* 0"):
        dinov2.read(changed(exported, change))


def test_positions_that_fill_no_square_are_refused(exported):
    def change(graph):
        (kept,) = (each for each in graph.initializer if list(each.dims) == [1, small.GRID**2, small.DIM])
        cut = onnx.numpy_helper.to_array(kept)[:, :-1]
        kept.CopyFrom(onnx.numpy_helper.from_array(cut, kept.name))

    with pytest.raises(WeightsError, match="for the class token and a square grid .*, found .* of 1 and 24 positions"):
        dinov2.read(changed(exported, change))


def test_another_network_is_refused(tmp_path):
    path = small.export(torch.nn.Conv2d(3, 2, 14), tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match=r"the file has to hold a DINOv2 ViT that torch exported"):
        dinov2.read(path)


@pytest.mark.parametrize("content", [b"no protobuf at all", b""])
def test_a_file_that_is_no_onnx_is_refused(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(WeightsError, match=r"expected an ONNX file .*a\.onnx, found .*; export the model with torch"):
        dinov2.read(tmp_path / "a.onnx")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="expected an ONNX file at .*, found nothing; check the path"):
        dinov2.read(tmp_path / "a.onnx")


def test_without_the_package_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(WeightsError, match=r"expected the package onnx, .* found none; python -m pip install 'onnx"):
        convert.main(["--onnx", "a.onnx", "--out", str(tmp_path / "b.safetensors")])
