"""`python -m training.train`: train a model on CIFAR-100, resumably."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from model import ModelConfig, build, files, save_checkpoint
from model.engine import Classifier, pick_device
from model.preprocess import InputStage, Preprocess
from training import cli, data, plots, state
from training.augment import random_crop, random_flip
from training.config import TrainConfig
from training.data import Images
from training.errors import DivergedError, ResumeError
from training.initialise import mimetic
from training.scores import score

CROP_BORDER = 4


@dataclass
class Progress:
    """Where a run stands: the next step to take, and what was scored so far."""

    epoch: int = 0
    step: int = 0
    """Steps already taken in this epoch."""
    loss_sum: float = 0.0
    hits: int = 0
    seen: int = 0
    best: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training run: everything it needs, built from its configs."""

    def __init__(self, config: TrainConfig, model_config: ModelConfig) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = pick_device(config.device)
        self.preprocess = Preprocess(native_size=config.native_size, interpolation=config.interpolation)
        self.model = build(model_config, drop_path=config.drop_path, patch_drop=config.patch_drop)
        if config.init == "mimetic":
            mimetic(self.model.vit)
        stage = InputStage(self.preprocess, model_config.image_size)
        self.classifier = Classifier(self.model, stage).to(self.device)
        self.ema = ModelEmaV3(self.model, config.ema_decay, use_warmup=True) if config.ema_decay else None
        whole = data.load(config.data_dir, "train", config.native_size)
        train, held_out = data.split_off(whole, config.val_fraction, config.seed)
        self.train, self.held_out = train.to(self.device), held_out
        self.steps = max(1, len(train) // config.batch_size)
        self.optimizer = create_optimizer_v2(
            self.model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay
        )
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=config.epochs * self.steps,
            lr_min=config.min_lr,
            warmup_t=round(config.warmup_epochs * self.steps),
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.amp_type = _amp_type(config, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_type is torch.float16)
        self.progress = Progress()

    def go(self) -> list[dict[str, Any]]:
        """Trains to the last epoch and returns the history; raises `DivergedError` on a NaN loss."""
        while self.progress.epoch < self.config.epochs:
            self._epoch()
            self._end_epoch()
        return self.progress.history

    def _epoch(self) -> None:
        here, config = self.progress, self.config
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(config.seed * 100_003 + here.epoch)
        ).to(self.device)
        self.classifier.train()
        saved = time.monotonic()
        with tqdm(
            total=self.steps,
            initial=here.step,
            desc=f"epoch {here.epoch + 1}/{config.epochs}",
            unit_scale=config.batch_size,
            unit=" images",
            mininterval=1.0,
        ) as bar:
            while here.step < self.steps:
                at = here.step * config.batch_size
                loss = self._step(self.train.take(order[at : at + config.batch_size]))
                here.step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{self.optimizer.param_groups[0]['lr']:.1e}", refresh=False)
                if time.monotonic() - saved > config.save_every_s:
                    self.save_state()
                    saved = time.monotonic()

    def _step(self, batch: Images) -> float:
        here, config = self.progress, self.config
        number = here.epoch * self.steps + here.step
        # one seed per step: a resumed run draws the numbers that the killed one would have drawn
        torch.manual_seed(config.seed * 1_000_003 + number)
        self.schedule.step_update(number)
        with self._autocast():
            logits = self._logits(self._augmented(batch.pixels))
            loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=config.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"loss is {value} at epoch {here.epoch + 1}, step {here.step + 1}; the last good checkpoint and state "
                "are untouched. Lower --lr, lengthen --warmup_epochs or use --no_amp"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=number)
        here.loss_sum += value * len(batch)
        here.hits += int((logits.argmax(dim=1) == batch.labels).sum())
        here.seen += len(batch)
        return value

    def _augmented(self, pixels: Tensor) -> Tensor:
        return random_flip(random_crop(pixels, CROP_BORDER)) if self.config.augment else pixels

    def _logits(self, pixels: Tensor) -> Tensor:
        logits: Tensor
        if self.model.config.merges:
            logits = self.classifier(pixels).logits
        else:  # no score is needed
            logits = self.model.vit(self.classifier.input_stage(pixels))
        return logits

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.amp_type, enabled=self.amp_type is not None)

    def _end_epoch(self) -> None:
        here = self.progress
        entry: dict[str, Any] = {
            "epoch": here.epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": here.loss_sum / here.seen,
            "train_top1": here.hits / here.seen,
        }
        judged = here.epoch
        if len(self.held_out):
            judging = self.classifier if self.ema is None else Classifier(self.ema.module, self.classifier.input_stage)
            found = score(judging, self.held_out, self.config.eval_batch_size, self.device)
            entry |= {"val_loss": found.loss, "val_top1": found.top1, "val_top5": found.top5}
        here.history.append(entry)
        better = entry.get("val_top1", judged)  # nothing held out: the latest is the best
        if better >= here.best:
            here.best = better
            self._save_checkpoint(entry)
        here.epoch, here.step, here.loss_sum, here.hits, here.seen = here.epoch + 1, 0, 0.0, 0, 0
        self.save_state()
        files.write_text(self.config.history_path, json.dumps(here.history, indent=1) + "\n")
        plots.training_curves(here.history, self.config.curves_path)
        tqdm.write(" ".join(f"{key} {value:.4g}" for key, value in entry.items()), file=sys.stderr)

    def _save_checkpoint(self, entry: dict[str, Any]) -> None:
        scores = {key: value for key, value in entry.items() if key in ("val_top1", "val_top5")}
        save_checkpoint(
            self.config.checkpoint_path,
            self.model if self.ema is None else self.ema.module,
            name=self.model.config.backbone,
            preprocess=self.preprocess,
            scores=scores,
            training={
                "command": shlex.join(["python", "-m", "training.train", *sys.argv[1:]]),
                "data": data.HUB_NAME,
                "images": len(self.train),
                "epoch": entry["epoch"],
                "config": self.config.model_dump(mode="json", exclude={"data_dir", "output_dir"}),
            },
        )

    def save_state(self) -> None:
        """Writes all that `load_state` needs to go on with the same numbers."""
        modules = {"model": self.model.state_dict()}
        if self.ema is not None:
            modules["ema"] = self.ema.module.state_dict()
        facts = {"progress": vars(self.progress), "scaler": self.scaler.state_dict(), "run": self._identity()}
        state.save(self.config.state_path, modules, self.optimizer, facts)

    def load_state(self) -> None:
        """Continues where `save_state` left off; raises `ResumeError` if that was another run."""
        modules, optimizer, facts = state.load(self.config.state_path)
        _refuse_other_run(facts["run"], self._identity())
        self.model.load_state_dict(modules["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(modules["ema"])
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(facts["scaler"])
        self.progress = Progress(**facts["progress"])

    def _identity(self) -> dict[str, Any]:
        free = {
            "data_dir",
            "output_dir",
            "device",
            "threads",
            "save_every_s",
            "resume",
            "overwrite",
            "eval_batch_size",
        }
        told = {
            **self.model.config.model_dump(mode="json"),
            **self.config.model_dump(mode="json", exclude=free),
        }
        return {**told, "training_images": len(self.train)}


def train(config: TrainConfig, model_config: ModelConfig) -> list[dict[str, Any]]:
    """Runs or resumes a training and returns its history, one entry per epoch.

    Without `config.freqmerge` nothing merges. Raises `DataError`, `ResumeError` and `DivergedError`.
    """
    if not config.freqmerge:
        model_config = model_config.replace(keep_rate=1.0)
    if not (config.resume or config.overwrite) and config.state_path.exists() and not _finished(config):
        raise ResumeError(
            f"{config.state_path} holds an unfinished run; go on with --resume, start over with --overwrite or "
            "choose another --output_dir"
        )
    run = Run(config, model_config)
    if config.resume:
        run.load_state()
    return run.go()


def _finished(config: TrainConfig) -> bool:
    _, _, facts = state.load(config.state_path)
    return bool(facts["progress"]["epoch"] >= facts["run"]["epochs"])


def _refuse_other_run(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in wanted if saved.get(key) != wanted[key]]
    if differing:
        told = "; ".join(f"{key}: saved {saved.get(key)!r}, given {wanted[key]!r}" for key in differing)
        raise ResumeError(f"resume: expected the settings that the run started with, found others ({told})")


def _amp_type(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    if not config.amp or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the training."""
    parsed = cli.parser(
        "python -m training.train", "Train FreqMerge on CIFAR-100.", TrainConfig, ModelConfig
    ).parse_args(arguments)
    config = TrainConfig(**cli.given(TrainConfig, parsed))
    train(config, ModelConfig(**cli.given(ModelConfig, parsed)))


if __name__ == "__main__":
    cli.run(main)
