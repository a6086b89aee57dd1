"""The frozen, validated description of one training run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from model.config import Frozen
from model.images.preprocess import Filter

RAND_AUGMENT = re.compile(r"rand(-(m|n|mmax|inc)\d+|-(p|mstd)\d*\.?\d+|-t[a-z0-9]+)*")


class TrainConfig(Frozen):
    """Data, recipe and outputs of one run; the model has its own `ModelConfig`.

    Defaults of `epochs`, `batch_size`, `lr`, `weight_decay` and of the CUDA flags are the seed's.
    """

    data_dir: Path | None = Field(
        None,
        description="folder with one folder of pictures per class (train/CLASS/, test/CLASS/), or with CIFAR-100 as "
        "Parquet (train-*.parquet, test-*.parquet); none downloads CIFAR-100",
    )
    output_dir: Path = Field(
        Path(),
        description="where checkpoints/, logs/ and visualizations/ are written, and where --resume finds the state; of "
        "several machines only the first one's is used",
    )
    freqmerge: bool = Field(True, description="merge tokens while training; --no_freqmerge trains the plain ViT")
    epochs: int = Field(20, ge=1, description="passes over the training images")
    epoch_images: int | None = Field(
        None, ge=1, description="training images of one epoch, drawn anew for each; none takes all of them"
    )
    batch_size: int = Field(32, ge=1, description="images per step, of each process where several train together")
    lr: float = Field(3e-4, gt=0, description="peak learning rate; not scaled with the number of processes")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the schedule")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up from zero")
    schedule: Literal["cosine", "tanh", "poly", "step", "constant"] = Field(
        "cosine", description="learning rate after the warm-up, by timm's name"
    )
    decay_epochs: float = Field(10.0, gt=0, description="epochs between two decays of schedule 'step'")
    decay_rate: float = Field(0.1, gt=0, description="factor of each decay of schedule 'step', power of 'poly'")
    optimizer: str = Field("adamw", description="optimizer, by timm's name")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a block over that of the next one; 1 treats all alike"
    )
    clip_grad: float = Field(1.0, ge=0, description="largest gradient norm; 0 does not clip")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    augment: bool = Field(True, description="random crops (4 pixels of reflected border) and horizontal flips")
    mixup: float = Field(0.0, ge=0, description="Mixup: alpha of its Beta distribution, one draw per batch; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="CutMix: alpha of its Beta distribution, one draw per batch; 0 is off")
    mix_prob: float = Field(
        1.0, ge=0, le=1, description="share of the batches that are mixed, if mixup or cutmix is on"
    )
    cutmix_share: float = Field(0.5, ge=0, le=1, description="share of CutMix among mixed batches where both are on")
    rand_augment: str | None = Field(
        None, description="timm's RandAugment, such as rand-m9-n2-mstd0.5, run by worker processes on the CPU"
    )
    workers: int = Field(4, ge=0, description="processes that run RandAugment; 0 runs it in the training process")
    random_erasing: float = Field(0.0, ge=0, le=1, description="share of the images that lose a rectangle to noise")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block")
    patch_drop: float = Field(
        0.0, ge=0, lt=1, description="share of patches left out of each training step (plain ViT only)"
    )
    init: Literal["timm", "mimetic"] = Field(
        "timm",
        description="initialisation: timm's own, or mimetic attention weights (Trockman & Kolter, 2023)",
    )
    pretrained: str | None = Field(
        None,
        description="start from trained weights: a safetensors file (timm's or a checkpoint of FreqMerge), or alone "
        "timm's ImageNet weights from the hub; head and position embedding are fitted",
        json_schema_extra={"alone": "hub"},
    )
    teacher: Path | None = Field(None, description="checkpoint whose answers are distilled into the model")
    distill: Literal["soft", "hard"] = Field(
        "soft", description="the teacher's probabilities (Hinton et al., 2015) or its decisions (Touvron et al., 2021)"
    )
    distill_weight: float = Field(0.5, ge=0, le=1, description="share of the teacher in the loss")
    temperature: float = Field(3.0, gt=0, description="temperature of soft distillation")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay per step of the averaged weights; 0 does not average")
    native_size: int = Field(
        32, ge=4, description="side of the images in memory, in pixels; 32 for CIFAR-100, often image_size for others"
    )
    interpolation: Filter = Field("bicubic", description="filter that enlarges to image_size")
    val_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training images held out to choose the best epoch; 0 keeps the last",
    )
    val_seed: int | None = Field(
        None,
        ge=0,
        description="seed of what is held out; none takes seed. The stages of one training hold out the same images "
        "with it, and still draw their own order and crops",
    )
    eval_batch_size: int = Field(500, ge=1, description="images per evaluation step")
    amp: bool = Field(
        True, description="mixed precision, on CUDA and on CPUs that have bfloat16; --no_amp computes in float32"
    )
    amp_type: Literal["auto", "bfloat16", "float16"] = Field(
        "auto",
        description="type of mixed precision: auto is bfloat16 where the hardware has it, else float16 on CUDA and "
        "float32 on a CPU, which never takes float16",
    )
    cudnn_benchmark: bool = Field(True, description="let cuDNN try its kernels and keep the fastest")
    deterministic: bool = Field(
        False, description="only kernels that repeat bit for bit, which is slower; switches cudnn_benchmark off"
    )
    multi_gpu: bool = Field(True, description="train on every visible GPU; --no_multi_gpu forces one")
    empty_cache_every_n_epochs: int = Field(
        5, ge=0, description="epochs between two torch.cuda.empty_cache(); 0 never calls it"
    )
    grad_checkpoint: bool = Field(False, description="compute activations again in the backward pass to save memory")
    compile: bool = Field(
        False, description="compile the training step with torch.compile: a minute at the start, faster from then on"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    patience_s: float = Field(
        1800.0, gt=0, description="seconds that a process waits for one that does not answer before the run ends"
    )
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")
    seed: int = Field(0, ge=0, description="seed of weights, split, order and augmentation")
    save_every_s: float = Field(120.0, gt=0, description="seconds between saves of the state that --resume reads")
    resume: bool = Field(False, description="continue the run whose state is in output_dir")
    overwrite: bool = Field(False, description="replace the run that output_dir holds, finished or not")

    @field_validator("mixup", "cutmix")
    @classmethod
    def _paired(cls, alpha: float, info: Any) -> float:
        if alpha and info.data.get("batch_size", 0) % 2:
            raise ValueError(f"expected 0 where batch_size is odd ({info.data['batch_size']}): images mix in pairs")
        return alpha

    @field_validator("pretrained")
    @classmethod
    def _not_mimetic(cls, source: str | None, info: Any) -> str | None:
        if source and info.data.get("init") == "mimetic":
            raise ValueError("expected none where init is mimetic, which would overwrite the weights")
        return source

    @field_validator("rand_augment")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        if text is not None and not RAND_AUGMENT.fullmatch(text):
            raise ValueError("expected timm's notation: rand, then -m, -n, -p, -mstd, -mmax, -inc with numbers or -t")
        return text

    @field_validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        from timm.optim import list_optimizers  # slow to import

        if name not in list_optimizers():
            raise ValueError("expected one of timm.optim.list_optimizers(), such as adamw, sgd, lamb or lion")
        return name

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return bool(self.mix_prob and (self.mixup or self.cutmix))

    @property
    def split_seed(self) -> int:
        """What decides which images are held out."""
        return self.seed if self.val_seed is None else self.val_seed

    @property
    def checkpoint_path(self) -> Path:
        """Best weights so far, as a FreqMerge checkpoint."""
        return self.output_dir / "checkpoints" / "best_model.safetensors"

    @property
    def state_path(self) -> Path:
        """All that a killed run needs to go on."""
        return self.output_dir / "checkpoints" / "last_state.safetensors"

    @property
    def history_path(self) -> Path:
        """Scores of every epoch, as JSON."""
        return self.output_dir / "logs" / "training_history.json"

    @property
    def curves_path(self) -> Path:
        """Plot of the history."""
        return self.output_dir / "visualizations" / "training_curves.png"


FREE = frozenset(
    {
        "compile",
        "cudnn_benchmark",
        "data_dir",
        "device",
        "empty_cache_every_n_epochs",
        "eval_batch_size",
        "grad_checkpoint",
        "multi_gpu",
        "output_dir",
        "overwrite",
        "patience_s",
        "resume",
        "save_every_s",
        "teacher",
        "threads",
        "workers",
    }
)
"""Fields that a resumed run may change: they decide where and how fast it computes, not what. A teacher is known by
the digest of its checkpoint."""
