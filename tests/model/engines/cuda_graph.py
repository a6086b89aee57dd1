"""Run as a program: exports the shipped model on the CPU and on a CUDA device without memory, and compares the graphs.

Prints one JSON line: operators in order of both, and where the values of the second lie. No GPU is needed: fake tensors
have a device and a shape, and nothing is computed.
"""

import json
import sys
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from model import build
from model.checkpoint import read_manifest
from model.engines.classifier import Classifier
from model.engines.program import exported
from model.images.input_stage import InputStage
from model.manifest import default_checkpoint_path

SHIPPED = read_manifest(default_checkpoint_path())


def classifier() -> Classifier:
    """The shipped model, with weights of no matter."""
    config = SHIPPED.config
    return Classifier(build(config).eval(), InputStage(SHIPPED.preprocess, config.image_size)).eval()


def without_memory(module: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Puts every parameter and buffer on a CUDA device where nothing is stored."""
    with mode:
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    there = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    part._parameters[name] = torch.nn.Parameter(there, requires_grad=False)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")


def calls(program: ExportedProgram) -> list[Any]:
    """The nodes that compute."""
    return [node for node in program.graph.nodes if node.op == "call_function"]


def places(nodes: list[Any]) -> set[str]:
    """Devices of the tensors that they give."""
    values = [node.meta.get("val") for node in nodes]
    parts = [part for value in values for part in (value if isinstance(value, tuple | list) else [value])]
    return {str(part.device) for part in parts if isinstance(part, torch.Tensor)}


here = calls(exported(classifier(), 32))
mode, moved = FakeTensorMode(), classifier()
without_memory(moved, mode)
with mode:
    there = calls(exported(moved, 32))
names = [[str(node.target) for node in nodes] for nodes in (here, there)]
sys.stdout.write(json.dumps({"cpu": names[0], "cuda": names[1], "places": sorted(places(there))}) + "\n")
