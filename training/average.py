"""`python -m training.average`: the mean of the weights of several checkpoints, as one checkpoint.

Checkpoints that were fine-tuned from the same weights lie so close that their mean is a model, often a better one than
each of them, at the cost of one ("model soups", Wortsman et al., ICML 2022). What they were made of stays in the
manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.config import Frozen
from model.manifest import Manifest
from training import cli
from training.errors import WeightsError
from training.run.pretrained import origin


class AverageConfig(Frozen):
    """Which checkpoints are averaged, and where the mean goes."""

    ckpts: tuple[Path, ...] = Field(min_length=2, description="checkpoints of one config, two or more")
    out: Path = Field(description="safetensors file to write")


def average(config: AverageConfig, command: str) -> Manifest:
    """Writes the mean, float32, and returns its manifest; raises `WeightsError` for checkpoints that do not fit.

    The mean has the name, the preprocessing and the merging of the first.
    """
    checkpoints = [load_checkpoint(path) for path in config.ckpts]
    first, *others = checkpoints
    for other in others:
        _refuse_other(first, other)
    states = [checkpoint.model.state_dict() for checkpoint in checkpoints]
    first.model.load_state_dict({name: mean([state[name] for state in states]) for name in states[0]})
    manifest = first.manifest
    return save_checkpoint(
        config.out,
        first.model,
        name=manifest.name,
        preprocess=manifest.preprocess,
        class_names=manifest.class_names,
        superclasses=manifest.superclasses,
        training=_record(checkpoints, command),
    )


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape, in float32 and then in their own type; of whole numbers the first."""
    first = tensors[0]
    if not first.is_floating_point():
        return first
    total = first.float()
    for tensor in tensors[1:]:
        total = total + tensor.float()
    return (total / len(tensors)).to(first.dtype)


def _refuse_other(first: Checkpoint, other: Checkpoint) -> None:
    for field, expected, found in (
        ("model config", first.manifest.config, other.manifest.config),
        ("preprocessing", first.manifest.preprocess, other.manifest.preprocess),
        ("classes", first.manifest.class_names, other.manifest.class_names),
        ("data set", first.manifest.training.get("data"), other.manifest.training.get("data")),
    ):
        if found != expected:
            raise WeightsError(
                f"average: expected the {field} of {first.path} ({_shown(expected)}), found {_shown(found)} in "
                f"{other.path}; average checkpoints of one model"
            )
    if other.manifest.digest == first.manifest.digest:
        raise WeightsError(f"average: expected different weights, found those of {first.path} again in {other.path}")


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _record(checkpoints: Sequence[Checkpoint], command: str) -> dict[str, Any]:
    """What the manifest says of the training: of every checkpoint, and of all where they agree."""
    trainings = [checkpoint.manifest.training for checkpoint in checkpoints]
    shared: dict[str, Any] = {
        key: trainings[0][key]
        for key in ("data", "images")
        if key in trainings[0] and all(training.get(key) == trainings[0][key] for training in trainings)
    }
    members = [origin(str(checkpoint.path), checkpoint.manifest.config.backbone) for checkpoint in checkpoints]
    return {"command": command, **shared, "averaged": members}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the averaging."""
    parsed = cli.parser(
        "python -m training.average", "Write the mean of several checkpoints' weights.", AverageConfig
    ).parse_args(arguments)
    config = AverageConfig(**cli.given(AverageConfig, parsed))
    average(config, cli.command("training.average", arguments))
    print(f"written: {config.out}")
    print(f"evaluate: python -m training.evaluate --ckpt {config.out}")


if __name__ == "__main__":
    cli.run(main)
