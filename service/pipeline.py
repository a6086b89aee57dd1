"""The way of one picture, on every route that takes one: admitted, decoded, run, kept, drawn."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from starlette.requests import Request

from service import work
from service.batcher import Answer
from service.body import Upload, read_upload
from service.disconnect import CancelledWhenGone
from service.errors import DeadlineExceeded, QueueFull, UnknownImage
from service.exchange import exchange_of
from service.loading import ServedModel
from service.runtime import Service
from service.store import StoredImage, stored_image
from service.timing import Stages


class Recognised(NamedTuple):
    """A picture, taken out of its request, with the engine's answer."""

    data: bytes
    answer: Answer
    model: ServedModel


def service_of(request: Request) -> Service:
    """The service that answers this request."""
    service: Service = request.app.state.service
    return service


async def recognise(request: Request) -> Recognised:
    """The answer for the picture in the body; raises the `UploadError`s and all that admission refuses.

    A full queue is refused before the body is read, and admission counts the image before it is decoded.
    """
    service, stages = service_of(request), exchange_of(request).stages
    settings = service.settings
    model = service.accepting()
    with stages.measure("read"):
        upload = await read_upload(request, settings.max_upload_bytes, settings.body_timeout_s)
    place = service.batcher.admit(settings.request_timeout_s, accepted=True)
    async with CancelledWhenGone(request), place as slot:
        decoded = await _decode(service, upload, model, stages)
        answer = await slot.run(decoded.pixels)
    stages.add("queue", answer.queue_s)
    stages.add("engine", answer.engine_s)
    return Recognised(decoded.data, answer, model)


def keep(service: Service, recognised: Recognised) -> str | None:
    """The id under which a picture is kept for its heatmap; None if images are not kept."""
    answer = recognised.answer
    return service.store.put(stored_image(recognised.data, answer.frequency_score, answer.source_maps))


def kept(service: Service, image_id: str) -> StoredImage:
    """The picture of an id; raises `UnknownImage`."""
    if (stored := service.store.get(image_id)) is None:
        raise UnknownImage(
            f"expected the id of a picture classified in the last {service.settings.store_ttl_s:g} s, "
            f"found {image_id!r}; classify it again, or send it to POST /heatmap"
        )
    return stored


async def draw(request: Request, stored: StoredImage, how: work.Drawing) -> bytes:
    """The heatmap as a file; raises `QueueFull` or `DeadlineExceeded` if the worker threads are behind."""
    service = service_of(request)
    settings = service.settings
    if service.pool.pending >= settings.max_queue_size:
        raise QueueFull(f"expected fewer than {settings.max_queue_size} pictures in work, found that many; try later")
    grid = service.loaded().grid
    try:
        async with CancelledWhenGone(request), asyncio.timeout(settings.request_timeout_s):
            with exchange_of(request).stages.measure("draw"):
                return await service.pool.run(work.draw, stored, grid, how, settings)
    except TimeoutError:
        raise DeadlineExceeded(
            f"expected a drawing within {settings.request_timeout_s:g} s, found none; "
            "the service is busy, try again later"
        ) from None


async def _decode(service: Service, upload: Upload, model: ServedModel, stages: Stages) -> work.Decoded:
    with stages.measure("decode"):
        return await service.pool.run(work.decode_upload, upload, service.settings, model.native_size)
