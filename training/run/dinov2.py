"""A DINOv2 ViT inside an ONNX graph, read as weights under timm's names.

An export keeps the names that Hugging Face gives biases, norms and layer scales. Matrices lose theirs, so each is found
through the bias that is added to its product, and the position embedding through what is added to the sequence of
class token and patches. Whatever stands behind the backbone in the graph (a decoder, a head) is left alone.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from training.errors import WeightsError

CLASS_TOKEN = "embeddings.cls_token"
PROJECTION = "embeddings.patch_embeddings.projection"
PARTS = ("weight", "bias")
NEEDS = "convert: expected the package onnx, which reads the file, found none; python -m pip install 'onnx>=1.17'"


class Dinov2(NamedTuple):
    """What a graph holds of a DINOv2."""

    state: dict[str, Tensor]
    """Float32 weights under timm's names, layer scale as `ls1.gamma` and `ls2.gamma`, no head."""
    head_dim: int | None
    """Channels of an attention head, which no weight shows; None where the graph computes it when it runs."""


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

    def readers(self, name: str, kind: str) -> list[Any]:
        """The nodes of a kind that read a tensor."""
        return [node for node in self.users.get(name, []) if node.op_type == kind]

    def refused(self, expected: str, found: str) -> WeightsError:
        """The error for a file that lacks what a DINOv2 has."""
        return WeightsError(
            f"convert: expected {expected} in {self.path}, found {found}; the file has to hold a DINOv2 ViT that torch "
            "exported under Hugging Face's names (embeddings.cls_token, encoder.layer.0.norm1.weight, …)"
        )


def read(path: Path) -> Dinov2:
    """The DINOv2 in an ONNX file; raises `WeightsError` for a file that is missing, not ONNX or of another kind."""
    graph = opened(path)
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
    return Dinov2(state, _head_dim(graph, f"{prefix}encoder.layer.0.attention.attention.query.bias"))


def opened(path: Path) -> Graph:
    """The graph of an ONNX file; raises `WeightsError` if there is none."""
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
    if not weights:
        raise WeightsError(
            f"convert: expected an ONNX file with its weights at {path}, found a graph without any; export the model "
            "with torch.onnx.export"
        )
    return Graph(path, weights, maker, dict(users))


def _block(graph: Graph, name: str) -> dict[str, Tensor]:
    """One transformer block under timm's names."""
    state = {f"{norm}.{part}": graph.tensor(f"{name}{norm}.{part}") for norm in ("norm1", "norm2") for part in PARTS}
    rows = [_linear(graph, f"{name}attention.attention.{part}") for part in ("query", "key", "value")]
    weights, biases = zip(*rows, strict=True)
    state |= {"attn.qkv.weight": torch.cat(weights), "attn.qkv.bias": torch.cat(biases)}
    for ours, theirs in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
        state[f"{ours}.weight"], state[f"{ours}.bias"] = _linear(graph, f"{name}{theirs}")
    for number in (1, 2):
        state[f"ls{number}.gamma"] = graph.tensor(f"{name}layer_scale{number}.lambda1")
    return state


def _linear(graph: Graph, name: str) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias of a linear layer: the matrix in whose product the bias is added."""
    bias = graph.tensor(f"{name}.bias")
    terms = [term for add in graph.readers(f"{name}.bias", "Add") for term in add.input]
    products = [graph.maker[term] for term in terms if term in graph.maker and graph.maker[term].op_type == "MatMul"]
    matrices = {term for product in products for term in product.input if term in graph.weights}
    if len(matrices) != 1:
        raise graph.refused(f"one matrix in the product that {name}.bias is added to", f"{len(matrices)}")
    weight = graph.tensor(matrices.pop())
    if weight.ndim != 2 or weight.shape[1] != len(bias):
        raise graph.refused(f"a matrix [in, {len(bias)}] before {name}.bias", f"shape {tuple(weight.shape)}")
    return weight.T.contiguous(), bias


def _prefix(graph: Graph) -> str:
    """What stands before the backbone's own names, such as 'backbone.'."""
    prefixes = [name.removesuffix(CLASS_TOKEN) for name in graph.weights if name.endswith(CLASS_TOKEN)]
    if len(prefixes) != 1:
        raise graph.refused(
            f"one tensor {CLASS_TOKEN}", f"{len(prefixes)} (others are {', '.join(list(graph.weights)[:3])})"
        )
    return prefixes[0]


def _depth(graph: Graph, prefix: str) -> int:
    """The number of blocks, which have to be numbered without a gap."""
    pattern = re.compile(re.escape(prefix) + r"encoder\.layer\.(\d+)\.norm1\.weight")
    numbers = sorted(int(match[1]) for match in map(pattern.fullmatch, graph.weights) if match)
    if not numbers or numbers != list(range(len(numbers))):
        raise graph.refused("blocks encoder.layer.0, 1, 2, …", f"the numbers {numbers}")
    return len(numbers)


def _positions(graph: Graph, prefix: str) -> Tensor:
    """Position embedding [1, 1 + patches, dim]: what is added to the sequence that begins with the class token."""
    dim = graph.tensor(f"{prefix}{CLASS_TOKEN}").shape[-1]
    sequence = _first(graph, f"{prefix}{CLASS_TOKEN}", "Concat")
    sums = graph.readers(sequence.output[0], "Add") if sequence is not None else []
    if len(sums) != 1:
        raise graph.refused("a position embedding added to class token and patches", f"{len(sums)} such sums")
    terms = [term for term in sums[0].input if term != sequence.output[0]]
    candidates = [_tokens(graph.tensor(name), dim) for term in terms for name in _stored(graph, term)]
    parts = [part for part in candidates if part is not None]
    parts.sort(key=lambda part: part.shape[1])  # that of the class token comes first
    counts = [part.shape[1] for part in parts]
    patches = sum(counts) - 1
    if len(counts) > 2 or counts[:-1] not in ([], [1]) or patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise graph.refused(
            f"positions of {dim} channels for the class token and a square grid",
            f"stored tensors of {' and '.join(map(str, counts)) or 'no'} positions",
        )
    return torch.cat(parts, dim=1)


def _tokens(tensor: Tensor, dim: int) -> Tensor | None:
    """Vectors as [1, count, dim], also of a grid that the exporter has already reshaped; None if it is none."""
    shape = tuple(tensor.shape)
    if len(shape) == 4 and shape[:2] == (1, dim):
        return tensor.flatten(2).transpose(1, 2)
    if len(shape) == 4 and (shape[0], shape[3]) == (1, dim):
        return tensor.flatten(1, 2)
    return tensor if len(shape) == 3 and (shape[0], shape[2]) == (1, dim) else None


def _head_dim(graph: Graph, bias: str) -> int | None:
    """The last size of the shape in which the queries are laid out, where the file says it."""
    reshape = _first(graph, bias, "Reshape")
    maker = graph.maker.get(reshape.input[1]) if reshape is not None else None
    stored = reshape.input[1] if maker is None or maker.op_type != "Concat" else maker.input[-1]
    return int(graph.tensor(stored).flatten()[-1]) if stored in graph.weights else None


def _first(graph: Graph, name: str, kind: str) -> Any:
    """The nearest node of a kind that a tensor flows into, sizes (Shape) aside; None if there is none."""
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


def _onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise WeightsError(NEEDS) from error
    return onnx
