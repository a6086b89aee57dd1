"""The frozen, validated description of one training run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from model.config import Frozen
from model.preprocess import Filter


class TrainConfig(Frozen):
    """Data, recipe and outputs of one run; the model has its own `ModelConfig`.

    Defaults of `epochs`, `batch_size`, `lr` and `weight_decay` are the seed's.
    """

    data_dir: Path | None = Field(
        None,
        description="folder with CIFAR-100 as Parquet (train-*.parquet, test-*.parquet); none downloads it",
    )
    output_dir: Path = Field(Path(), description="where checkpoints/, logs/ and visualizations/ are written")
    freqmerge: bool = Field(True, description="merge tokens while training; --no_freqmerge trains the plain ViT")
    epochs: int = Field(20, ge=1, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images per step")
    lr: float = Field(3e-4, gt=0, description="peak learning rate")
    min_lr: float = Field(1e-6, ge=0, description="learning rate at the end of the cosine")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up from zero")
    optimizer: str = Field("adamw", description="optimizer, by timm's name")
    clip_grad: float = Field(1.0, ge=0, description="largest gradient norm; 0 does not clip")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    augment: bool = Field(True, description="random crops (4 pixels of reflected border) and horizontal flips")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate of the last block")
    patch_drop: float = Field(
        0.0, ge=0, lt=1, description="share of patches left out of each training step (plain ViT only)"
    )
    init: Literal["timm", "mimetic"] = Field(
        "timm",
        description="initialisation: timm's own, or mimetic attention weights (Trockman & Kolter, 2023)",
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay per step of the averaged weights; 0 does not average")
    native_size: int = Field(32, ge=4, description="side of the stored images in pixels")
    interpolation: Filter = Field("bicubic", description="filter that enlarges to image_size")
    val_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the training images held out to choose the best epoch; 0 keeps the last",
    )
    eval_batch_size: int = Field(500, ge=1, description="images per evaluation step")
    amp: bool = Field(True, description="mixed precision on CUDA: bfloat16 where the GPU has it, else float16")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")
    seed: int = Field(0, ge=0, description="seed of weights, split, order and augmentation")
    save_every_s: float = Field(120.0, gt=0, description="seconds between saves of the state that --resume reads")
    resume: bool = Field(False, description="continue the run whose state is in output_dir")
    overwrite: bool = Field(False, description="start over although output_dir holds an unfinished run")

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
