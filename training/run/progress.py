"""What a run tells people: one line when it starts, one per epoch, one when it has ended."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from model.macs import count_parameters
from training import distributed
from training.config import TrainConfig
from training.data.loader import Loader


def beginning(
    config: TrainConfig, place: str, model: nn.Module, loader: Loader, held_out: int, done: tuple[int, int]
) -> str:
    """Where, what and how much is trained.

    `place` says where and in what numbers; `done` are the epochs, and the steps of the next one, already taken.
    """
    group = f"{distributed.size()} processes, the first on " if distributed.size() > 1 else ""
    resumed = f"; resumes after {count(done[0], 'epoch')} and {count(done[1], 'step')}" if config.resume else ""
    return (
        f"{group}{place}: {count_parameters(model) / 1e6:.1f} M parameters, {len(loader):,} training and "
        f"{held_out:,} validation images, {count(config.epochs, 'epoch')} of {count(loader.steps, 'step')} of "
        f"{count(loader.batch, 'image')}; writes to {config.output_dir.absolute()}{resumed}"
    )


def count(number: int, noun: str) -> str:
    """Such as '1 epoch' and '1,406 steps'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def place(device: torch.device) -> str:
    """The device, with the name of the GPU or the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({count(torch.get_num_threads(), 'thread')})"


def epoch(entry: Mapping[str, Any], epochs: int) -> str:
    """The scores of an epoch, in percent."""
    parts = [f"training loss {entry['train_loss']:.4f}, top-1 {entry['train_top1']:.2%}"]
    if "val_top1" in entry:
        parts.append(
            f"validation loss {entry['val_loss']:.4f}, top-1 {entry['val_top1']:.2%}, top-5 {entry['val_top5']:.2%}"
        )
    return f"epoch {entry['epoch']}/{epochs}: {'; '.join(parts)}; learning rate {entry['lr']:.1e}"


def ending(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> str:
    """Which epoch was kept, what it scores, where it lies, and how to evaluate or serve it."""
    kept_epoch = max(history, key=lambda entry: (entry.get("val_top1", 0.0), entry["epoch"]))  # the latest of equals
    top1 = "val_top1" in kept_epoch
    score = (
        f"validation top-1 {kept_epoch['val_top1']:.2%}" if top1 else f"training top-1 {kept_epoch['train_top1']:.2%}"
    )
    data = ["--data_dir", str(config.data_dir)] if config.data_dir else []
    evaluate = ["python", "-m", "training.evaluate", "--ckpt", str(config.checkpoint_path), *data]
    return (
        f"{'best' if top1 else 'last'} epoch {kept_epoch['epoch']} of {config.epochs}: {score}\n"
        f"written: {config.checkpoint_path}\n"
        f"evaluate: {shlex.join(evaluate)}\n"
        f"serve: FREQMERGE_CHECKPOINT={shlex.quote(str(config.checkpoint_path))} python -m service"
    )
