"""A model for an installation without torch: the portable artifact, and clear words for all that needs more."""

from __future__ import annotations

from pathlib import Path

from model.engines import portable
from model.engines.portable import Portable
from model.errors import CheckpointError, EngineError
from model.manifest import WEIGHTS, read_header
from model.processor import usable_cpus
from service.runtime.served import ServedModel
from service.settings import Settings

FULL = "install the full set: make serve FULL=1, or pip install 'freqmerge[torch]'"


def load(settings: Settings) -> ServedModel:
    """The model that the settings name, run by OpenVINO; raises `FreqMergeError` where that takes torch."""
    path = _path(settings)
    shipped = portable.read(path)
    _refuse_what_needs_torch(settings, shipped)
    checkpoint = settings.checkpoint
    if checkpoint is not None and checkpoint.suffix != ".json":
        portable.check_fits(path, shipped, read_header(checkpoint), shipped.config)
    engine = portable.create(
        path,
        shipped,
        settings.max_batch_size_on("cpu"),
        settings.engine_cache,
        settings.threads or usable_cpus(),
        f"openvino: {shipped.precision}, which needs no torch; torch is not installed",
    )
    return ServedModel(engine, shipped.checkpoint, shipped.config, shipped.schedule, shipped.grid, shipped.parameters)


def _path(settings: Settings) -> Path:
    """Where the artifact's JSON lies."""
    if settings.checkpoint is None:
        shipped = sorted(WEIGHTS.glob("*.int8.json"))
        if len(shipped) != 1:
            raise CheckpointError(
                f"expected one *.int8.json file in {WEIGHTS}, found {len(shipped)}; without torch nothing else can be "
                f"served: {FULL}"
            )
        return shipped[0]
    if settings.checkpoint.suffix == ".json":
        return settings.checkpoint
    path = portable.find_artifact(settings.checkpoint, settings.engine_cache)
    if path is None:
        raise EngineError(
            f"checkpoint: expected {portable.path_beside(settings.checkpoint).name} beside {settings.checkpoint}, "
            f"found none; make it with python -m model.export --engine openvino --precision int8, or {FULL}"
        )
    return path


def _refuse_what_needs_torch(settings: Settings, shipped: Portable) -> None:
    wanted = {
        "engine": (settings.engine, ("auto", "openvino")),
        "device": (settings.device, ("auto", "cpu")),
        "precision": (settings.precision, ("auto", shipped.precision)),
    }
    for name, (choice, offered) in wanted.items():
        if choice not in offered:
            raise EngineError(
                f"{name}: expected {' or '.join(offered)}, as torch is not installed, found {choice!r}; {FULL}"
            )
    for name, value in settings.config_overrides.items():
        there = getattr(shipped.config, name)
        if value != there:
            raise EngineError(
                f"{name}: expected {there:g}, which the artifact was made with, as torch is not installed, found "
                f"{value:g}; {FULL}"
            )
