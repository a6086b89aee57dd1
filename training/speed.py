"""`python -m training.speed`: images/s of training in float32 and bfloat16, with fused and explicit attention.

One step is forward, backward and AdamW on one batch. All combinations are timed in turns, so that whatever else the
machine does hits them alike; what counts is the median of the ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from model import ModelConfig, build, speed
from model.engines.device import pick_device
from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from training import cli
from training.measure import records
from training.run import arithmetic
from training.run.arithmetic import Arithmetic
from training.run.objectives import Plain


class StepConfig(records.RecordConfig):
    """What is timed, how often, and where the result goes."""

    batch_size: int = Field(64, ge=1, description="images per step")
    native_size: int = Field(32, ge=4, description="side of the images before they are enlarged, in pixels")
    repeats: int = Field(5, ge=3, description="timed steps of each combination")
    warm_up: int = Field(1, ge=1, description="steps before timing")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")


def combinations(device: torch.device) -> list[Arithmetic]:
    """What this device can train in; bfloat16 only where the hardware has it."""
    has_bf16 = arithmetic.cuda_has_bf16(device) if device.type == "cuda" else arithmetic.has_bf16()
    kinds: list[torch.dtype | None] = [None, torch.bfloat16] if has_bf16 else [None]
    return [Arithmetic(kind, fused) for kind in kinds for fused in (True, False)]


def measure(config: StepConfig, model_config: ModelConfig) -> list[dict[str, Any]]:
    """One result per combination: images/s (median, quartiles) and speed-up over float32 with fused attention."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    steps = {str(kind): _step(kind, config, model_config, device) for kind in combinations(device)}
    times = speed.seconds(steps, config.repeats, config.warm_up, device)
    first = next(iter(times.values()))
    results = []
    for name, own in times.items():
        low, middle, high = statistics.quantiles([config.batch_size / second for second in own], n=4)
        results.append(
            {
                "arithmetic": name,
                "config": model_config.model_dump(mode="json"),
                "batch_size": config.batch_size,
                "images_per_s": middle,
                "images_per_s_quartiles": [low, high],
                "speed_up": statistics.median(other / second for other, second in zip(first, own, strict=True)),
                "repeats": config.repeats,
                "bfloat16": len(times) > 2,
            }
        )
    return results


def _step(
    kind: Arithmetic, config: StepConfig, model_config: ModelConfig, device: torch.device
) -> Callable[[], Tensor]:
    """One update of a model of its own; the same weights and images for all."""
    torch.manual_seed(0)
    objective = Plain(
        build(model_config), InputStage(Preprocess(native_size=config.native_size), model_config.image_size)
    )
    objective.to(device).train()
    if not kind.fused:
        arithmetic.unfuse(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5)
    side = config.native_size
    pixels = torch.randint(0, 256, (config.batch_size, 3, side, side), device=device).float()
    labels = torch.randint(0, model_config.num_classes, (config.batch_size,), device=device)

    def step() -> Tensor:
        with torch.autocast(device.type, dtype=kind.amp_type, enabled=kind.amp_type is not None):
            loss: Tensor = objective(pixels, labels).loss
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the timing."""
    parsed = cli.parser("python -m training.speed", "Time training steps.", StepConfig, ModelConfig).parse_args(
        arguments
    )
    config = StepConfig(**cli.given(StepConfig, parsed))
    results = measure(config, ModelConfig(**cli.given(ModelConfig, parsed)))
    device = pick_device(config.device)
    path = records.write("speed", cli.command("training.speed", arguments), results, device, config.results)
    for result in results:
        print(f"{result['arithmetic']:<28}{result['images_per_s']:8.1f} images/s  {result['speed_up']:.2f}x")
    if not results[0]["bfloat16"]:
        print("bfloat16 was not timed: this hardware has no arithmetic for it")
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
