"""`python -m training.train`: train on CIFAR-100 or one's own pictures, resumably, on one device or many."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from tqdm import tqdm

from model import ModelConfig, files
from model.engines.device import pick_device
from training import cli, distributed, plots
from training.config import FREE, TrainConfig
from training.data.augment import Augmentation, seed_everything
from training.data.images import Images, split_off
from training.data.loader import Loader
from training.errors import DivergedError
from training.measure.scores import score
from training.run import arithmetic, identity, outputs, progress, state, task
from training.run.task import Task

RANK_SEED = 1_000_000_007


@dataclass
class Progress:
    """Where a run stands: the next step to take, and what was scored so far."""

    epoch: int = 0
    step: int = 0
    """Steps already taken in this epoch."""
    loss_sum: float = 0.0
    hits: int = 0
    seen: int = 0
    seconds: float | None = 0.0
    """Wall time of the steps and of scoring the held-out images, what a kill threw away left out; None if a part of the
    run did not count it."""
    best: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """One training run: everything it needs, built from its config and its task."""

    def __init__(self, config: TrainConfig, task: Task) -> None:
        self.config, self.task, self.model = config, task, task.model
        self.device = pick_device(config.device)
        self.objective = task.objective.to(self.device)
        self.arithmetic = arithmetic.chosen(config, self.device)
        if not self.arithmetic.fused:  # else as the model was built
            arithmetic.unfuse(self.objective)
        self.ema = ModelEmaV3(self.model, config.ema_decay, use_warmup=True) if config.ema_decay else None
        whole = task.source.load("train", config.native_size)
        identity.refuse_other_images(whole, self.device)
        train, self.held_out = split_off(whole, config.val_fraction, config.split_seed)
        self.loader = Loader(train, config, task.preprocess, self.device)
        self.augmentation = Augmentation(config, task.preprocess, len(task.source.classes), self.device)
        self.optimizer = create_optimizer_v2(
            self.model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, param_group_fn=task.groups
        )
        self.schedule = _schedule(config, self.optimizer, self.loader.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.arithmetic.amp_type is torch.float16)
        self.shared = distributed.share(self.objective, self.device)
        if config.compile:  # every step has the same shapes
            self.shared.compile(dynamic=False)
        self.progress = Progress()
        self.saved = ""
        """Where the state stands that --resume would go on from; empty if there is none of this run."""
        self._counted = time.monotonic()

    def go(self) -> list[dict[str, Any]]:
        """Trains to the last epoch and returns the history.

        Raises `DivergedError` on a NaN loss and `SaveError` when a file cannot be written.
        """
        self._counted = time.monotonic()
        while self.progress.epoch < self.config.epochs:
            self._epoch()
            self._end_epoch()
        return self.progress.history

    def _epoch(self) -> None:
        here, config = self.progress, self.config
        self.shared.train()
        saved = time.monotonic()
        with tqdm(
            total=self.loader.steps,
            initial=here.step,
            desc=f"epoch {here.epoch + 1}/{config.epochs}",
            unit_scale=self.loader.batch,
            unit=" images",
            mininterval=1.0,
            disable=distributed.rank() > 0,
        ) as bar:
            for batch in self.loader.epoch(here.epoch, here.step):
                loss = self._step(batch)
                here.step += 1
                self._count_time()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", lr=f"{self._lr():.1e}", refresh=False)
                if time.monotonic() - saved > config.save_every_s:
                    self.save_state()
                    saved = time.monotonic()

    def _step(self, batch: Images) -> float:
        """One update by a batch that all processes share; the mean loss over it."""
        here, config = self.progress, self.config
        number = here.epoch * self.loader.steps + here.step
        # one seed per step: a resumed run draws the numbers that the killed one would have drawn
        seed = config.seed * 1_000_003 + number
        seed_everything(seed)
        self.schedule.step_update(number)
        own = distributed.own_rows(len(batch))
        pixels, targets = (part[own] for part in self.augmentation(batch.pixels, batch.labels))
        if distributed.rank() > 0:  # from here on every process draws for its own images
            torch.manual_seed(seed + distributed.rank() * RANK_SEED)
        with self._autocast():
            loss, logits = self.shared(pixels, targets)
        decided = targets if targets.ndim == 1 else targets.argmax(dim=1)
        hits = (logits.argmax(dim=1) == decided).sum()
        self._update(loss)
        # the only wait for the device in a step, once all of it is on its way
        mean, correct = torch.stack([loss.detach().double(), hits.double()]).tolist()
        value = self._count(mean, round(correct), len(pixels))
        if self.ema is not None:
            self.ema.update(self.model, step=number)
        return value

    def _count_time(self) -> None:
        """Adds the wall time since the last call."""
        now = time.monotonic()
        if self.progress.seconds is not None:
            self.progress.seconds += now - self._counted
        self._counted = now

    def _count(self, loss: float, hits: int, images: int) -> float:
        """The mean loss over all processes, added to the epoch's sums; raises `DivergedError` in all of them."""
        here = self.progress
        loss_sum, all_hits, seen = distributed.total([loss * images, float(hits), float(images)], self.device)
        if not math.isfinite(loss_sum):
            raise DivergedError(
                f"loss is {loss_sum} at epoch {here.epoch + 1}, step {here.step + 1}; the last good checkpoint and "
                "state are untouched. Lower --lr, lengthen --warmup_epochs or use --no_amp"
            )
        here.loss_sum += loss_sum
        here.hits += round(all_hits)
        here.seen += round(seen)
        return loss_sum / seen

    def _update(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _lr(self) -> float:
        """The largest learning rate of any group."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.arithmetic.amp_type
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _end_epoch(self) -> None:
        here, config = self.progress, self.config
        entry: dict[str, Any] = {
            "epoch": here.epoch + 1,
            "lr": self._lr(),
            "train_loss": here.loss_sum / here.seen,
            "train_top1": here.hits / here.seen,
        }
        entry |= self._held_out_scores()
        self._count_time()
        here.history.append(entry)
        better = float(entry.get("val_top1", here.epoch))  # nothing held out: the latest is the best
        if better >= here.best:
            here.best = better
            self._save_checkpoint(entry)
        here.epoch, here.step, here.loss_sum, here.hits, here.seen = here.epoch + 1, 0, 0.0, 0, 0
        self.save_state()
        if distributed.rank() == 0:
            self._report(entry)
        every = config.empty_cache_every_n_epochs
        if every and here.epoch % every == 0 and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _held_out_scores(self) -> dict[str, float]:
        """Scores of the held-out images, every process judging its share of them."""
        if not len(self.held_out):
            return {}
        judging = nn.Sequential(self.objective.stage, self._judged())
        own = self.held_out.take(torch.arange(distributed.rank(), len(self.held_out), distributed.size()))
        sums = [0.0, 0.0, 0.0]
        if len(own):
            own_scores = score(judging, own, self.config.eval_batch_size, self.device)
            sums = [len(own) * value for value in (own_scores.loss, own_scores.top1, own_scores.top5)]
        if distributed.size() == 1:  # no rounding: the scores as they were found
            return {"val_loss": own_scores.loss, "val_top1": own_scores.top1, "val_top5": own_scores.top5}
        loss, top1, top5 = (value / len(self.held_out) for value in distributed.total(sums, self.device))
        return {"val_loss": loss, "val_top1": top1, "val_top5": top5}

    def _report(self, entry: dict[str, Any]) -> None:
        with outputs.saving(self.config.history_path, bool(self.saved)):
            files.write_text(self.config.history_path, json.dumps(self.progress.history, indent=1) + "\n")
        with outputs.saving(self.config.curves_path, bool(self.saved)):
            plots.training_curves(self.progress.history, self.config.curves_path)
        tqdm.write(progress.epoch(entry, self.config.epochs), file=sys.stderr)

    def _save_checkpoint(self, entry: dict[str, Any]) -> None:
        if distributed.rank() > 0:
            return
        training = {
            "command": cli.command(self.task.command),
            "data": self.task.source.origin,
            "images": len(self.loader),
            "epoch": entry["epoch"],
            "steps": entry["epoch"] * self.loader.steps,
            "images_seen": entry["epoch"] * self.loader.steps * self.loader.batch,
            "seconds": self.progress.seconds,
            "arithmetic": str(self.arithmetic),
            "processes": distributed.size(),
            "config": self.config.model_dump(mode="json", exclude={"data_dir", "output_dir"}),
            **self.task.facts,
        }
        scores = {key: value for key, value in entry.items() if key in ("val_top1", "val_top5")}
        with outputs.saving(self.config.checkpoint_path, bool(self.saved)):
            self.task.save(self.config.checkpoint_path, self._judged(), scores, training)

    def _judged(self) -> nn.Module:
        """What is scored and kept: the averaged weights if there are any, else those of the last step."""
        return self.model if self.ema is None else self.ema.module

    def save_state(self) -> None:
        """Writes all that `load_state` needs to go on with the same numbers; the first process does."""
        if distributed.rank() > 0:
            return
        modules = {"model": self.model.state_dict()}
        if self.ema is not None:
            modules["ema"] = self.ema.module.state_dict()
        facts = {
            "progress": vars(self.progress),
            "scaler": self.scaler.state_dict(),
            "run": self._identity(),
            "command": cli.command(self.task.command),
            "facts": self.task.facts,
        }
        with outputs.saving(self.config.state_path, bool(self.saved)):
            state.save(self.config.state_path, modules, self.optimizer, facts)
        self._remember()

    def load_state(self) -> None:
        """Continues where `save_state` left off, in every process from the first one's file.

        Raises `ResumeError` if that was another run.
        """
        with distributed.copied(self.config.state_path, self.device) as path:
            modules, optimizer, facts = state.load(path)
        identity.refuse_other_run(facts["run"], self._identity())
        self.model.load_state_dict(modules["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(modules["ema"])
        self.optimizer.load_state_dict(optimizer)
        self.scaler.load_state_dict(facts["scaler"])
        # a state that is older than the count of time does not know how long it took
        self.progress = Progress(**{"seconds": None, **facts["progress"]})
        self.task.facts |= facts.get("facts", {})
        self._remember()

    def _remember(self) -> None:
        self.saved = f"{progress.count(self.progress.epoch, 'epoch')} and {progress.count(self.progress.step, 'step')}"

    def tell(self) -> None:
        """One line of where and what is trained, after a warning where it computes slowly."""
        if self.arithmetic.emulated:
            print(arithmetic.EMULATED, file=sys.stderr)
        here = self.progress
        done = here.epoch, here.step
        place = f"{progress.place(self.device)}, {self.arithmetic}"
        line = progress.beginning(self.config, place, self.model, self.loader, len(self.held_out), done)
        print(line, file=sys.stderr)

    def _identity(self) -> dict[str, Any]:
        settings = {**self.config.model_dump(mode="json", exclude={*FREE, "batch_size"}), **self.task.identity}
        names = list(self.task.source.classes.names)
        return {**settings, "class_names": names, "training_images": len(self.loader), identity.STEP: self.loader.batch}


def run(config: TrainConfig, make_task: Callable[[], Task]) -> list[dict[str, Any]]:
    """Runs or resumes the training of what `make_task` builds, and returns its history, one entry per epoch.

    Sets this process's threads, seeds and kernels first, because they decide the initial weights. Raises `DataError`,
    `ResumeError`, `SaveError` and `DivergedError`, and `PeerError` where another process did; an interruption says what
    of the run is kept.
    """
    distributed.agree(partial(_claim, config), pick_device(config.device))
    prepare(config)
    here = Run(config, make_task())
    if config.resume:
        here.load_state()
    if distributed.rank() > 0:
        return here.go()
    here.tell()
    try:
        return here.go()
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(_saved_so_far(here)) from stopped


def train(config: TrainConfig, model_config: ModelConfig) -> list[dict[str, Any]]:
    """Runs or resumes a training of FreqMerge; without `config.freqmerge` nothing merges. Raises as `run` does."""
    return run(config, partial(task.freqmerge, config, model_config))


def prepare(config: TrainConfig) -> None:
    """Sets threads, seed and choice of kernels of this process."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = config.cudnn_benchmark and not config.deterministic
    torch.backends.cudnn.deterministic = config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # noqa: TID251 - cuBLAS takes it from nowhere else
        torch.use_deterministic_algorithms(True)


def _claim(config: TrainConfig) -> None:
    """Makes sure, before anything is read, that the run may begin and that its files can be written."""
    outputs.claim(config)
    outputs.probe(config)
    for leftover in config.state_path.parent.glob(".*.safetensors.*.tmp"):  # of a run that was killed while saving
        leftover.unlink(missing_ok=True)


def _schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    # timm's "epochs" are our steps, so that a warm-up of half an epoch is whole again
    schedule, _ = create_scheduler_v2(
        optimizer,
        config.schedule,
        num_epochs=config.epochs * steps,
        warmup_epochs=round(config.warmup_epochs * steps),
        warmup_lr=0.0,
        min_lr=config.min_lr,
        decay_epochs=max(1, round(config.decay_epochs * steps)),
        decay_rate=config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule


def _saved_so_far(stopped: Run) -> str:
    if not stopped.saved:
        return "nothing of this run is saved yet; start it again"
    return f"{stopped.config.state_path} holds {stopped.saved}; the same command with --resume goes on from there"


def _work(config: TrainConfig, model_config: ModelConfig, device: str) -> None:
    history = train(config.replace(device=device), model_config)
    if distributed.rank() == 0:
        print(progress.ending(config, history))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the training."""
    parsed = cli.parser(
        "python -m training.train",
        "Train FreqMerge on CIFAR-100 or on pictures of one's own.",
        TrainConfig,
        ModelConfig,
    ).parse_args(arguments)
    config = TrainConfig(**cli.given(TrainConfig, parsed))
    model_config = ModelConfig(**cli.given(ModelConfig, parsed))
    distributed.start(partial(_work, config, model_config), config.device, config.multi_gpu, config.patience_s)


if __name__ == "__main__":
    cli.run(main)
