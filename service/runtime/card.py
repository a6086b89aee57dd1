"""What GET /model and GET /labels say, and what the logs and metrics repeat of it."""

from __future__ import annotations

from typing import Any

from model._version import __version__
from model.images.pictures import FORMATS
from service.runtime.served import ServedModel
from service.settings import Settings


def model_card(served: ServedModel, settings: Settings) -> dict[str, Any]:
    """The body of GET /model, a `schemas.ModelCard`."""
    manifest, engine = served.manifest, served.engine
    return {
        "name": manifest.name,
        "digest": manifest.digest,
        "classes": len(manifest.class_names),
        "parameters": served.parameters,
        "config": served.config.model_dump(mode="json"),
        "overrides": settings.config_overrides,
        "schedule": list(served.schedule),
        "grid": list(served.grid),
        "native_size": served.native_size,
        "engine": {
            "kind": engine.kind,
            "device": engine.device,
            "precision": engine.precision,
            "reason": engine.reason,
            "max_batch_size": min(engine.max_batch_size, settings.max_batch_size),
        },
        "top1": manifest.scores.get("top1"),
        "top5": manifest.scores.get("top5"),
        "scores": manifest.scores,
        "certain_from": manifest.certain_from,
        "versions": manifest.versions,
        "service_version": __version__,
        "limits": _limits(settings),
    }


def labels(served: ServedModel) -> list[dict[str, Any]]:
    """Every class by id: class_id, label, superclass (None if the checkpoint has none)."""
    names = served.manifest.class_names
    groups = served.manifest.superclasses or (None,) * len(names)
    return [
        {"class_id": class_id, "label": name, "superclass": group}
        for class_id, (name, group) in enumerate(zip(names, groups, strict=True))
    ]


def model_info(served: ServedModel) -> dict[str, str]:
    """Labels of the metric `freqmerge_model_info`."""
    engine = served.engine
    return {
        "name": served.manifest.name,
        "digest": served.manifest.digest,
        "engine": engine.kind,
        "device": engine.device,
        "precision": engine.precision,
        "keep_rate": f"{served.config.keep_rate:g}",
        "version": __version__,
    }


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "formats": list(FORMATS),
        "max_upload_bytes": settings.max_upload_bytes,
        "max_pixels": settings.max_pixels,
        "max_full_pixels": min(settings.max_pixels, settings.max_full_pixels),
        "max_side": settings.max_side,
        "max_batch_files": settings.max_images_per_request,
        "max_batch_upload_bytes": settings.max_batch_upload_bytes,
        "heatmap_max_side": settings.heatmap_max_side,
    }
