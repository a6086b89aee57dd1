"""`python -m training.convert`: an ONNX file with a DINOv2 in it becomes timm weights that a training starts from.

An export keeps the names that Hugging Face gives biases, norms and layer scales. Matrices lose theirs, so each is found
through the bias that is added to its product, and the position embedding through what is added to the class token's
sequence. Whatever stands behind the backbone in the graph (a decoder, a head) is left alone.

Layer scale is folded into the layer before it, which changes no output; timm then resamples patch and position
embedding to the backbone, which does.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from timm.models import vision_transformer
from torch import Tensor, nn

from model import files
from model.checkpoint import versions
from model.config import Frozen
from model.vit import backbone
from training import cli
from training.errors import WeightsError
from training.run.pretrained import ORIGIN_KEY, sha256

CLASS_TOKEN = "embeddings.cls_token"
PROJECTION = "embeddings.patch_embeddings.projection"
PARTS = ("weight", "bias")
NEEDS = "training.convert needs the package onnx: python -m pip install 'freqmerge[convert]'"


class ConvertConfig(Frozen):
    """Which ONNX file becomes the weights of which timm model."""

    onnx: Path = Field(description="ONNX file with a DINOv2 ViT under Hugging Face's names, exported by torch")
    out: Path = Field(description="safetensors file to write: timm's names, float32, no head")
    backbone: str = Field("vit_small_patch16_224", description="timm model that the weights are fitted to")
    backbone_args: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of the timm model, such as depth=2"
    )
    image_size: int = Field(224, ge=1, description="side of the images whose grid the position embedding is fitted to")


@dataclass(frozen=True)
class Graph:
    """An ONNX graph by the names of its tensors."""

    path: Path
    weights: dict[str, Any]
    """Stored tensors, as ONNX keeps them."""
    maker: dict[str, Any]
    """The node that computes a tensor."""
    users: dict[str, list[Any]]
    """The nodes that read a tensor."""

    def tensor(self, name: str) -> Tensor:
        """The stored tensor of that name in float32; raises `WeightsError` if there is none."""
        if name not in self.weights:
            raise self.refused(f"the tensor {name}", "none of that name")
        return torch.from_numpy(_onnx().numpy_helper.to_array(self.weights[name]).copy()).float()

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a stored tensor, None for a computed one."""
        return tuple(self.weights[name].dims) if name in self.weights else None

    def refused(self, expected: str, found: str) -> WeightsError:
        """The error for a file that lacks what a DINOv2 has."""
        return WeightsError(
            f"convert: expected {expected} in {self.path}, found {found}; the file has to hold a DINOv2 ViT that torch "
            "exported under Hugging Face's names (embeddings.cls_token, encoder.layer.0.norm1.weight, …)"
        )


def read(path: Path) -> dict[str, Tensor]:
    """The DINOv2 in an ONNX file as float32 weights under timm's names, layer scale still apart.

    Raises `WeightsError` for a file that is missing, not ONNX or of another architecture.
    """
    graph = _graph(path)
    prefix = _prefix(graph)
    state = {
        "cls_token": graph.tensor(f"{prefix}{CLASS_TOKEN}"),
        "pos_embed": _positions(graph, prefix),
        "patch_embed.proj.weight": graph.tensor(f"{prefix}{PROJECTION}.weight"),
        "patch_embed.proj.bias": graph.tensor(f"{prefix}{PROJECTION}.bias"),
    }
    for layer in range(_depth(graph, prefix)):
        block = _block(graph, f"{prefix}encoder.layer.{layer}.")
        state |= {f"blocks.{layer}.{name}": tensor for name, tensor in block.items()}
    state |= {f"norm.{part}": graph.tensor(f"{prefix}layernorm.{part}") for part in PARTS}
    return state


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same network without layer scale: γ ⊙ (W x + b) = (γ ⊙ W) x + γ ⊙ b, in every block."""
    result = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        scaled = re.fullmatch(r"(blocks\.\d+\.)ls([12])\.gamma", name)
        if scaled:
            layer = scaled[1] + ("attn.proj" if scaled[2] == "1" else "mlp.fc2")
            result[f"{layer}.weight"] = gamma[:, None] * result[f"{layer}.weight"]
            result[f"{layer}.bias"] = gamma * result[f"{layer}.bias"]
    return result


def fitted(state: Mapping[str, Tensor], model: Any, path: Path) -> dict[str, Tensor]:
    """The weights on the patch size and grid of a timm ViT without a head; raises `WeightsError` if more differs."""
    kept: dict[str, Tensor] = vision_transformer.checkpoint_filter_fn(dict(state), model)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in kept.items()}
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise WeightsError(
            f"convert: expected the weights of {model.default_cfg['architecture']} in {path}; {len(differing)} tensors "
            f"differ, first {key}: expected {expected.get(key, 'no such tensor')}, found "
            f"{found.get(key, 'no such tensor')}; name the --backbone (and --backbone_args) that the weights belong to"
        )
    return {key: tensor.contiguous() for key, tensor in kept.items()}


def convert(config: ConvertConfig, command: str) -> dict[str, Any]:
    """Writes the timm weights, and returns where they come from, as the file's own metadata tells it."""
    source = read(config.onnx)
    model: Any = _model(config)
    state = fitted(folded(source), model, config.onnx)
    origin = {
        "command": command,
        "backbone": config.backbone,
        "done": _done(source, state),
        "versions": versions(),
        "started_from": {"file": config.onnx.name, "sha256": sha256(config.onnx)},
    }
    with files.replacing(config.out) as temporary:
        save_file(state, temporary, metadata={ORIGIN_KEY: json.dumps(origin)})
    return origin


def _model(config: ConvertConfig) -> nn.Module:
    arguments = {"num_classes": 0, "img_size": config.image_size, **config.backbone_args}
    return backbone.create(config.backbone, **arguments)


def _done(source: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What was changed on the way, a line each."""
    done = ["query, key and value stacked into one matrix"]
    if any(name.endswith(".gamma") for name in source):
        done.append("layer scale folded into attn.proj and mlp.fc2 (exact)")
    for name, what in (("patch_embed.proj.weight", "patch embedding"), ("pos_embed", "position embedding")):
        before, after = tuple(source[name].shape), tuple(state[name].shape)
        if before != after:
            done.append(f"{what} resampled by timm from {before} to {after}")
    return done


def _block(graph: Graph, name: str) -> dict[str, Tensor]:
    """One transformer block under timm's names."""
    state = {f"{norm}.{part}": graph.tensor(f"{name}{norm}.{part}") for norm in ("norm1", "norm2") for part in PARTS}
    rows = [_linear(graph, f"{name}attention.attention.{part}") for part in ("query", "key", "value")]
    state |= {"attn.qkv.weight": torch.cat([row[0] for row in rows]), "attn.qkv.bias": torch.cat([r[1] for r in rows])}
    for ours, theirs in (
        ("attn.proj", "attention.output.dense"),
        ("mlp.fc1", "mlp.fc1"),
        ("mlp.fc2", "mlp.fc2"),
    ):
        weight, bias = _linear(graph, f"{name}{theirs}")
        state |= {f"{ours}.weight": weight, f"{ours}.bias": bias}
    for number in (1, 2):
        state[f"ls{number}.gamma"] = graph.tensor(f"{name}layer_scale{number}.lambda1")
    return state


def _linear(graph: Graph, name: str) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias of a linear layer: the matrix in whose product the bias is added."""
    bias = graph.tensor(f"{name}.bias")
    products = [
        graph.maker[term]
        for add in graph.users.get(f"{name}.bias", [])
        if add.op_type == "Add"
        for term in add.input
        if term in graph.maker and graph.maker[term].op_type == "MatMul"
    ]
    matrices = {term for product in products for term in product.input if term in graph.weights}
    if len(matrices) != 1:
        raise graph.refused(f"one matrix in the product that {name}.bias is added to", f"{len(matrices)}")
    weight = graph.tensor(matrices.pop())
    if weight.ndim != 2 or weight.shape[1] != len(bias):
        raise graph.refused(f"a matrix [in, {len(bias)}] before {name}.bias", f"shape {tuple(weight.shape)}")
    return weight.T.contiguous(), bias


def _prefix(graph: Graph) -> str:
    """What stands before the backbone's own names, such as 'backbone.'."""
    found = [name.removesuffix(CLASS_TOKEN) for name in graph.weights if name.endswith(CLASS_TOKEN)]
    if len(found) != 1:
        shown = ", ".join(sorted(graph.weights)[:3]) or "no tensors"
        raise graph.refused(f"one tensor {CLASS_TOKEN}", f"{len(found)} (tensors: {shown}, …)")
    return found[0]


def _depth(graph: Graph, prefix: str) -> int:
    """The number of blocks, which have to be numbered without a gap."""
    pattern = re.compile(re.escape(prefix) + r"encoder\.layer\.(\d+)\.norm1\.weight")
    numbers = sorted(int(found[1]) for found in map(pattern.fullmatch, graph.weights) if found)
    if not numbers or numbers != list(range(len(numbers))):
        raise graph.refused("blocks encoder.layer.0, 1, 2, …", f"the numbers {numbers}")
    return len(numbers)


def _positions(graph: Graph, prefix: str) -> Tensor:
    """Position embedding [1, 1 + patches, dim]: what is added to the sequence that begins with the class token."""
    dim = graph.tensor(f"{prefix}{CLASS_TOKEN}").shape[-1]
    sequence = _first(graph, f"{prefix}{CLASS_TOKEN}", "Concat")
    for add in graph.users.get(sequence.output[0], []) if sequence is not None else []:
        if add.op_type != "Add":
            continue
        (other,) = (term for term in add.input if term != sequence.output[0])
        parts = sorted((shape[1], name) for name in _stored(graph, other) if (shape := _tokens(graph, name, dim)))
        counts = [count for count, _ in parts]
        patches = counts[-1] - (len(counts) == 1) if counts else 0
        if len(counts) <= 2 and counts[:-1] in ([], [1]) and patches and math.isqrt(patches) ** 2 == patches:
            return torch.cat([graph.tensor(name) for _, name in parts], dim=1)
        raise graph.refused(
            "a position embedding of the class token and a square grid", f"stored tensors of {counts} positions"
        )
    raise graph.refused("a position embedding added to the class token and the patches", "no such sum")


def _tokens(graph: Graph, name: str, dim: int) -> tuple[int, ...] | None:
    """The shape [1, count, dim] of a stored tensor of token vectors, None for others."""
    shape = graph.shape(name)
    return shape if shape is not None and len(shape) == 3 and (shape[0], shape[2]) == (1, dim) else None


def _first(graph: Graph, name: str, kind: str) -> Any:
    """The nearest node of a kind that a tensor flows into, or None."""
    waiting, seen = [name], {name}
    while waiting:
        for node in graph.users.get(waiting.pop(0), []):
            if node.op_type == kind:
                return node
            fresh = [output for output in node.output if output not in seen and node.op_type != "Shape"]
            waiting += fresh
            seen.update(fresh)
    return None


def _stored(graph: Graph, name: str) -> Iterator[str]:
    """The stored tensors that a tensor is computed from, sizes (Shape) aside."""
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop()
        if current in graph.weights:
            yield current
        maker = graph.maker.get(current)
        if maker is not None and maker.op_type != "Shape":
            fresh = [term for term in maker.input if term not in seen]
            waiting += fresh
            seen.update(fresh)


def _graph(path: Path) -> Graph:
    onnx = _onnx()
    if not path.is_file():
        raise WeightsError(f"convert: expected an ONNX file at {path}, found nothing; check the path")
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's own errors, of which onnx promises no type
        raise WeightsError(
            f"convert: expected an ONNX file at {path}, found another format or a damaged file ({error}); export the "
            "model with torch.onnx.export"
        ) from error
    weights = {tensor.name: tensor for tensor in graph.initializer}
    maker: dict[str, Any] = {}
    users: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "Constant":
            weights.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
        maker |= dict.fromkeys(node.output, node)
        for term in node.input:
            users[term].append(node)
    return Graph(path, weights, maker, dict(users))


def _onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise WeightsError(NEEDS) from error
    return onnx


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the conversion."""
    parsed = cli.parser(
        "python -m training.convert", "Turn an ONNX file with a DINOv2 in it into timm weights.", ConvertConfig
    ).parse_args(arguments)
    config = ConvertConfig(**cli.given(ConvertConfig, parsed))
    origin = convert(config, cli.command("training.convert", arguments))
    print("\n".join(origin["done"]))
    print(f"written: {config.out}; start from it with python -m training.train --pretrained {config.out}")


if __name__ == "__main__":
    cli.run(main)
