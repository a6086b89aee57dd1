"""`python -m training.convert`: a DINOv2 ViT in an ONNX file becomes timm weights that a training starts from.

Layer scale is folded into the layers before it, which changes no answer; timm then resamples patch and position
embedding to the backbone, which does. The file written says in its metadata what it was made of, and how.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors.torch import save_file
from timm.models import vision_transformer
from torch import Tensor

from model import files
from model.checkpoint import versions
from model.config import Frozen
from model.vit import backbone
from training import cli
from training.errors import WeightsError
from training.run import dinov2
from training.run.pretrained import ORIGIN_KEY, sha256


class ConvertConfig(Frozen):
    """Which ONNX file becomes the weights of which timm model."""

    onnx: Path = Field(description="ONNX file with a DINOv2 ViT under Hugging Face's names, exported by torch")
    out: Path = Field(description="safetensors file to write: timm's names, float32, no head")
    backbone: str = Field("vit_small_patch16_224", description="timm model that the weights are fitted to")
    backbone_args: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of the timm model, such as depth=2"
    )
    image_size: int = Field(224, ge=1, description="side of the images whose grid the position embedding is fitted to")


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same network without layer scale: γ ⊙ (W x + b) = (γ ⊙ W) x + γ ⊙ b, twice in every block."""
    result = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        scaled = re.fullmatch(r"(blocks\.\d+\.)ls([12])\.gamma", name)
        if scaled:
            layer = scaled[1] + ("attn.proj" if scaled[2] == "1" else "mlp.fc2")
            result[f"{layer}.weight"] = gamma[:, None] * result[f"{layer}.weight"]
            result[f"{layer}.bias"] = gamma * result[f"{layer}.bias"]
    return result


def fitted(source: dinov2.Dinov2, model: Any, config: ConvertConfig) -> dict[str, Tensor]:
    """The folded weights on the patch size and grid of a timm ViT without a head.

    Raises `WeightsError` where more than patch size and grid differs.
    """
    state: dict[str, Tensor] = vision_transformer.checkpoint_filter_fn(folded(source.state), model)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    differing = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
    if differing:
        key = differing[0]
        raise WeightsError(
            f"convert: expected a DINOv2 that fits {config.backbone} in {config.onnx}; {len(differing)} tensors "
            f"differ, first {key}: expected {expected.get(key, 'no such tensor')}, found "
            f"{shapes.get(key, 'no such tensor')}; name the --backbone (and --backbone_args) of its depth and width"
        )
    head_dim = model.blocks[0].attn.head_dim
    if source.head_dim not in (None, head_dim):
        raise WeightsError(
            f"convert: expected attention heads of {head_dim} channels, as {config.backbone} has them, in "
            f"{config.onnx}, found {source.head_dim}; name the --backbone_args num_heads=… of the file"
        )
    return {key: tensor.contiguous() for key, tensor in state.items()}


def convert(config: ConvertConfig, command: str) -> dict[str, Any]:
    """Writes the timm weights, and returns where they come from, as the file's own metadata tells it.

    Raises `WeightsError` for a file that is missing, not ONNX or of another architecture than the backbone, and
    `BackboneError` for a backbone that timm does not have.
    """
    arguments = {"num_classes": 0, "img_size": config.image_size, **config.backbone_args}
    model = backbone.create(config.backbone, **arguments)
    source = dinov2.read(config.onnx)
    state = fitted(source, model, config)
    origin = {
        "command": command,
        "backbone": config.backbone,
        "done": _done(source.state, state),
        "versions": versions(),
        "started_from": {"file": config.onnx.name, "sha256": sha256(config.onnx)},
    }
    with files.replacing(config.out) as temporary:
        save_file(state, temporary, metadata={ORIGIN_KEY: json.dumps(origin)})
    return origin


def _done(source: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What was changed on the way, a line each."""
    done = [
        "query, key and value stacked into one matrix (exact)",
        "layer scale folded into attn.proj and mlp.fc2 (exact)",
    ]
    for name, what in (("patch_embed.proj.weight", "patch embedding"), ("pos_embed", "position embedding")):
        before, after = tuple(source[name].shape), tuple(state[name].shape)
        if before != after:
            done.append(f"{what} resampled by timm from {before} to {after}")
    return done


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the conversion."""
    parsed = cli.parser(
        "python -m training.convert", "Turn a DINOv2 ViT in an ONNX file into timm weights.", ConvertConfig
    ).parse_args(arguments)
    config = ConvertConfig(**cli.given(ConvertConfig, parsed))
    origin = convert(config, cli.command("training.convert", arguments))
    print("\n".join(origin["done"]))
    print(f"written: {config.out}; start from it with python -m training.train --pretrained {config.out}")


if __name__ == "__main__":
    cli.run(main)
