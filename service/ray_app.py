"""The service as a Ray Serve application: `serve run service.ray_app:app`, or `…:build`.

Importing this file does nothing; `app` is built from the environment's settings when it is asked for.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from service.ray.engine import Engine
from service.ray.ingress import Ingress
from service.ray.plan import ENGINE, INGRESS, engine_options, ingress_options
from service.runtime.loading import ModelLoader, load_model
from service.settings import Settings, read_settings


def application(settings: Settings, load: ModelLoader = load_model, gpus: int | None = None) -> Application:
    """Ingresses that feed engines, not started; `gpus` per engine are 0 or 1, by the settings if it is None."""
    reserved = _gpus(settings) if gpus is None else gpus
    engine = serve.deployment(name=ENGINE, **engine_options(settings, reserved))(Engine)
    ingress = serve.deployment(name=INGRESS, **ingress_options(settings))(serve.ingress()(Ingress))
    made: Application = ingress.bind(engine.bind(settings, load), settings)
    return made


def build(arguments: dict[str, str]) -> Application:
    """The application of the environment's settings; raises `SettingsError`. `serve run` hands its arguments over."""
    return application(read_settings(**arguments))


def _gpus(settings: Settings) -> int:
    """GPUs of an engine replica; the device `auto` is what this machine has."""
    if settings.device == "auto":
        from model.engines.device import pick_device

        return int(pick_device("auto").type == "cuda")
    return int(settings.device.startswith("cuda"))


def __getattr__(name: str) -> Any:
    if name == "app":
        return build({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
