"""From settings to a model that can serve: checkpoint, engine and what the service says about them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from model.config import ModelConfig
from model.engines.engine import Engine
from model.errors import FreqMergeError
from model.manifest import Manifest, default_checkpoint_path
from service.errors import StartupError
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An engine, not warm yet, and the description of its model."""

    engine: Engine
    manifest: Manifest
    config: ModelConfig
    """The config in force: the manifest's, with the operator's overrides."""
    schedule: tuple[int, ...]
    grid: tuple[int, int]
    parameters: int
    lanes: int = 1
    """Batches that the engine takes at a time."""
    elsewhere: bool = False
    """Whether the engine runs in another process, perhaps on another machine."""

    @property
    def native_size(self) -> int:
        """Side of the square that a picture is reduced to, in pixels."""
        return self.manifest.preprocess.native_size

    @property
    def fingerprint(self) -> str:
        """The same for processes that draw each other's pictures alike: checkpoint, grid and token counts."""
        drawn = (self.manifest.digest, self.grid, self.config.merge_layers, self.schedule)
        return hashlib.sha256(repr(drawn).encode()).hexdigest()[:16]


ModelLoader = Callable[[Settings], ServedModel]


def load_model(settings: Settings) -> ServedModel:
    """The model that the settings name; takes seconds. Raises `StartupError`."""
    if settings.checkpoint is not None and not settings.checkpoint.is_file():
        raise StartupError(
            f"the model cannot be loaded: expected a checkpoint file at {settings.checkpoint}, found none; "
            "set FREQMERGE_CHECKPOINT to a .safetensors file, or leave it unset for the one that ships"
        )
    # These two import torch, which takes seconds: here, on the engine thread, while the socket already answers.
    from model.checkpoint import load_checkpoint
    from model.engines.choice import create_engine

    try:
        path = settings.checkpoint or default_checkpoint_path()
        checkpoint = load_checkpoint(path, **settings.config_overrides)
        engine = create_engine(
            checkpoint,
            settings.engine,
            settings.device,
            settings.max_batch_size,
            settings.threads,
            settings.precision,
            settings.engine_cache,
        )
    except FreqMergeError as error:
        raise StartupError(f"the model cannot be loaded: {error}") from error
    model = checkpoint.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ServedModel(engine, checkpoint.manifest, model.config, tuple(model.schedule), model.grid, parameters)
