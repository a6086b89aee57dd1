"""One checkpoint and one set of test images, on which any merging config is scored, counted and timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from model import FreqMergeViT, ModelConfig
from model.checkpoint import Checkpoint, load_checkpoint
from model.engines.classifier import Classifier
from model.engines.device import exact_float32, pick_device
from model.images.input_stage import InputStage
from model.macs import count_parameters
from model.speed import Rate, rates
from model.vit.merging_vit import Stem
from training.data import dataset
from training.data.images import Images
from training.measure import answer_cache, fitting, records
from training.measure.scores import answers
from training.measure.stems import Sharing, Stems

ARCHITECTURE = ("backbone", "backbone_args", "num_classes", "image_size")
"""Fields of the model config that the weights decide."""

Precision = Literal["float32", "bfloat16", "float16"]


class BenchConfig(records.RecordConfig):
    """Which checkpoint is measured, on what, where, and where results and pictures go."""

    ckpt: Path = Field(Path("checkpoints/best_model.safetensors"), description="checkpoint to measure")
    data_dir: Path | None = Field(None, description=f"{dataset.DESCRIPTION}; none downloads CIFAR-100")
    output_dir: Path = Field(Path(), description="where logs/, visualizations/ and results/ are written")
    images: int = Field(0, ge=0, description="first test images to use; 0 uses all, as every reported number must")
    batch_size: int = Field(500, ge=1, description="images per evaluation step")
    stem_gib: float = Field(
        6.0, ge=0, description="memory for the tokens before the first merging block, which most rows of a study share"
    )
    answers_dir: Path | None = Field(
        None,
        description="where the answers of every config are kept, about 4 MB for 10,000 images and 100 classes: a run "
        "that was stopped goes on there, and others share them; none keeps nothing",
    )
    precision: Precision = Field("float32", description="float32, or autocast to bfloat16 or float16")
    repeats: int = Field(15, ge=3, description="timed passes per model and batch size")
    warm_up: int = Field(3, ge=1, description="passes before timing")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads of torch; 0 leaves torch's choice")


class Cost(NamedTuple):
    """What a config costs, counted."""

    macs: int
    parameters: int
    patches: int
    """Patch tokens before the first block."""
    schedule: tuple[int, ...]
    """Patch tokens left after each block."""


Reader = Callable[[FreqMergeViT, Tensor, Stem], Float[Tensor, "batch values"]]
"""Numbers per image, read off a model, its normalised images and what enters its first merging block."""


class Bench:
    """Everything that a measurement needs, loaded once; configs share the weights.

    Raises `CheckpointError` for a file that is no checkpoint, and `DataError` for test images that cannot be read or
    have other classes than the checkpoint.
    """

    def __init__(self, config: BenchConfig, **changes: Any) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.device = pick_device(config.device)
        if self.device.type == "cuda":
            exact_float32()
        self.checkpoint: Checkpoint = load_checkpoint(config.ckpt, **changes)
        manifest = self.checkpoint.manifest
        self.source = dataset.source(config.data_dir)
        self.results = records.folder(config.output_dir, config.record, self.source)
        images = dataset.test_images(self.source, manifest, config.ckpt)
        self.vit = self.checkpoint.model.vit.to(self.device)
        self.stage = InputStage(manifest.preprocess, self.checkpoint.model.config.image_size).to(self.device)
        self.images = images.take(torch.arange(min(config.images, len(images)))) if config.images else images
        self._stems = Stems(round(config.stem_gib * 2**30))
        self._answers = answer_cache.AnswerCache(config.answers_dir) if config.answers_dir else None

    def model(self, config: ModelConfig) -> FreqMergeViT:
        """The checkpoint's weights under another merging config; raises `ConfigError` if it does not fit them."""
        return FreqMergeViT(self.vit, config).to(self.device).eval()

    def logits(self, config: ModelConfig, seed: int = 0) -> Float[Tensor, "count classes"]:
        """Answers for every test image, kept ones where there are any; the seed decides what strategies draw."""
        if self._answers is None:
            return self._measured(config, seed)
        own = {"config": config.model_dump(mode="json"), "seed": seed, "batch_size": self.config.batch_size}
        recipe = {**self.origin(), **own, **self._surroundings}
        return self._answers.of(recipe, lambda: self._measured(config, seed))

    @cached_property
    def _surroundings(self) -> dict[str, str]:
        return {"device": str(self.device), "pixels": answer_cache.digest(self.images), **answer_cache.surroundings()}

    def _measured(self, config: ModelConfig, seed: int) -> Float[Tensor, "count classes"]:
        torch.manual_seed(seed)
        sharing = Sharing(Classifier(self.model(config), self.stage), self._stems)
        with self._autocast():
            return answers(sharing, self.images, self.config.batch_size, self.device)

    @torch.inference_mode()
    def read(self, config: ModelConfig, reader: Reader, images: Images | None = None) -> Float[Tensor, "count values"]:
        """What a reader sees of every test image, or of these instead, before anything merges; float32 on the CPU.

        The stems of the test images are shared with `logits`.
        """
        model = self.model(config)
        chosen, stems = (self.images, self._stems) if images is None else (images, Stems(0))
        parts = []
        with self._autocast():
            for number, batch in enumerate(chosen.batches(self.config.batch_size)):
                pixels = self.stage(batch.pixels.to(self.device))
                parts.append(reader(model, pixels, stems.of(model, pixels, number)).float().cpu())
        return torch.cat(parts)

    def cost(self, config: ModelConfig) -> Cost:
        """Multiply-accumulates of one image, parameters and schedule."""
        model = self.model(config)
        return Cost(
            fitting.cost(self.vit, config), count_parameters(model), model.grid[0] * model.grid[1], model.schedule
        )

    def rates(self, configs: dict[str, ModelConfig], batch_size: int) -> dict[str, Rate]:
        """Throughput of every config in turns, the input stage left out; speed-up over the first."""
        side = self.checkpoint.model.config.image_size
        images = torch.randn(batch_size, 3, side, side, device=self.device)
        models: dict[str, nn.Module] = {
            # a config that merges nothing runs as the plain timm model, without a score
            name: self.model(config) if config.merges else self.vit
            for name, config in configs.items()
        }
        with self._autocast():
            return rates(models, images, self.config.repeats, self.config.warm_up, self.device)

    def origin(self) -> dict[str, Any]:
        """Which weights and images a number is of, for its record."""
        manifest = self.checkpoint.manifest
        return {
            "checkpoint": manifest.name,
            "digest": manifest.digest,
            "images": len(self.images),
            "precision": self.config.precision,
        }

    def _autocast(self) -> torch.autocast:
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        kind = kinds[self.config.precision]
        return torch.autocast(
            self.device.type,
            dtype=torch.bfloat16 if kind is torch.float32 else kind,
            enabled=kind is not torch.float32,
        )
