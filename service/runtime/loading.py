"""From settings to a model that can serve: checkpoint, engine and what the service says about them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

from model.errors import FreqMergeError
from model.manifest import default_checkpoint_path
from service.errors import StartupError
from service.runtime import torchless
from service.runtime.served import ServedModel
from service.settings import Settings

log = logging.getLogger(__name__)


ModelLoader = Callable[[Settings], ServedModel]


def load_model(settings: Settings) -> ServedModel:
    """The model that the settings name; takes seconds. Raises `StartupError`."""
    if settings.checkpoint is not None and not settings.checkpoint.is_file():
        raise StartupError(
            f"the model cannot be loaded: expected a checkpoint file at {settings.checkpoint}, found none; "
            "set FREQMERGE_CHECKPOINT to a .safetensors file, or leave it unset for the one that ships"
        )
    try:
        return _load(settings) if find_spec("torch") else torchless.load(settings)
    except FreqMergeError as error:
        raise StartupError(f"the model cannot be loaded: {error}") from error


def _load(settings: Settings) -> ServedModel:
    # These two import torch, which takes seconds: here, on the engine thread, while the socket already answers.
    from model.checkpoint import load_checkpoint
    from model.engines.choice import create_engine
    from model.engines.device import pick_device

    path = settings.checkpoint or default_checkpoint_path()
    checkpoint = load_checkpoint(path, **settings.config_overrides)
    engine = create_engine(
        checkpoint,
        settings.engine,
        settings.device,
        settings.max_batch_size_on(pick_device(settings.device).type),
        settings.threads,
        settings.precision,
        settings.engine_cache,
    )
    model = checkpoint.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ServedModel(engine, checkpoint.manifest, model.config, tuple(model.schedule), model.grid, parameters)
