"""The engine replica: a model on one device behind a batcher that several ingresses share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.errors import RequestError
from service.observe import log
from service.ray.gathered import Family, families
from service.ray.wire import Description, Reply, describe, packed
from service.runtime.loading import ModelLoader
from service.runtime.service import Service
from service.settings import Settings


class Engine:
    """A `Service` without HTTP. It runs from the moment on at which its engine is warm."""

    async def __init__(self, settings: Settings, load: ModelLoader) -> None:  # type: ignore[misc]  # Ray awaits it
        """Returns when the engine is warm; raises the `StartupError` that kept it from that."""
        log.configure(settings.log_level)
        self._service = Service(settings, load)
        await self._service.open()
        await self._service.warm()

    async def describe(self) -> Description:
        """Who the model is."""
        return describe(self._service.loaded())

    async def run(self, images: NDArray[np.uint8]) -> Reply:
        """The answers for uint8 [images, 3, native, native], which wait with those of other calls."""
        service = self._service
        try:
            with service.batcher.reserve(len(images), service.settings.request_timeout_s) as places:
                for slot, image in zip(places.slots, images, strict=True):
                    service.batcher.put(slot, image)
                return packed(await places.outcomes())
        except RequestError as error:
            return error

    async def families(self) -> tuple[str, list[Family]]:
        """The replica's name and its metrics."""
        return replica_name(), families(self._service.metrics.registry, engine=True)

    async def check_health(self) -> None:
        """Raises `NotReady` while the engine fails, stalls or is dead: Ray then replaces the replica."""
        self._service.check_ready()

    def __del__(self) -> None:
        """Ends the engine's thread; Ray has let the calls under way finish before."""
        self._service.batcher.stop()


def replica_name() -> str:
    """The name of the replica that runs this."""
    from ray import serve  # here: the rest of this module does without it

    context = serve.get_replica_context()
    return f"{context.deployment.lower()}-{context.replica_tag}"
