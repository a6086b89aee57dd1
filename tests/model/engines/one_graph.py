"""Run as a program, for its shape checks cannot be traced: exports models and prints what became of them as JSON.

Arguments: a checkpoint to take beside a ViT-Small with random weights, pooled as the one that is released.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from model import ModelConfig, build, load_checkpoint, save_checkpoint
from model.engines.classifier import classifier_of
from model.engines.program import exported
from tests.model.engines.operators import lowered, operators, replaced_otherwise, unconverted


class Control(torch.nn.Module):
    """What the model avoids: ToMe's gather and scatter, and the FFT of the frequency score."""

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = tokens[:, :2, :].argsort(dim=1)
        merged = tokens[:, 2:].scatter_reduce(1, index, tokens[:, :2].gather(1, index), reduce="mean")
        return merged, torch.fft.rfft(tokens, dim=1).abs()


def vit_small(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "small.safetensors"
    save_checkpoint(path, build(ModelConfig(backbone_args={"global_pool": "avg", "fc_norm": False})))
    return path


def told(path: Path, precision: str, sizes: tuple[int, ...]) -> dict[str, object]:
    classifier = classifier_of(load_checkpoint(path), precision)
    program = exported(classifier)
    run, side = program.module(), classifier.input_stage.native_size
    differences = []
    for size in sizes:
        images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8)
        with torch.inference_mode():
            pairs = list(zip(run(images), classifier(images)[:3], strict=True))
        differences.append(max((found.double() - wanted.double()).abs().max().item() for found, wanted in pairs))
    return {
        "model": path.stem,
        "precision": precision,
        "types": [str(part.dtype) for part, _ in pairs],
        "differences": differences,
        **checked(program),
    }


def checked(program: ExportedProgram) -> dict[str, list[str]]:
    names = operators(lowered(program))
    return {
        "operators": sorted(names),
        "unconverted": sorted(unconverted(names)),
        "replaced_otherwise": sorted(replaced_otherwise(names)),
    }


def control() -> dict[str, object]:
    batch = {"tokens": {0: Dim("batch", min=1, max=256)}}
    return {"model": "control", **checked(torch.export.export(Control(), (torch.rand(2, 6, 4),), dynamic_shapes=batch))}


def emit(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")


with tempfile.TemporaryDirectory() as folder:
    emit(told(Path(sys.argv[1]), "fp32", (1, 2, 17)))
    emit(told(Path(sys.argv[1]), "bf16", (1, 2, 17)))
    emit(told(vit_small(Path(folder)), "fp16", (1, 3)))  # the precision of its engine
    emit(control())
