"""The way of pictures, on every route that takes some: admitted, decoded, run, kept, drawn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from service.batching.batcher import Batcher
from service.batching.waiting import Answer, Slot
from service.errors import ClientGone, DeadlineExceeded, QueueFull, RequestError, UnknownImage
from service.http.body import Upload, read_upload
from service.http.deadline import Deadline
from service.http.disconnect import CancelledWhenGone, WhenGone
from service.http.exchange import exchange_of
from service.observe.timing import Stages
from service.pictures import jobs
from service.runtime.loading import ServedModel
from service.runtime.service import Service
from service.store.image_store import StoredImage, stored_image

SHARE_BYTES = 1 << 18
"""Of the files of one request, what one thread decodes before another one helps."""

HAND_OVER_S = 0.02
"""How long a thread keeps decoded pictures of one request back, so that they reach the engine together."""


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
    deadline = Deadline.of(request, settings)
    service.accepting()
    with stages.measure("read"):
        upload = await read_upload(request, settings.max_upload_bytes, settings.body_timeout_s)
    [end] = await _recognised(request, [upload], deadline)
    if isinstance(end, Exception):
        raise end
    return end


async def recognise_many(
    request: Request, uploads: Sequence[bytes], deadline: Deadline
) -> list[Recognised | RequestError]:
    """One answer or one refusal per file, in order; the files were read while `service.accepting` let them.

    Raises what refuses them all: `QueueFull` if there is not room for every one, `NotReady`, `ClientGone`.
    """
    return await _recognised(request, [Upload(data) for data in uploads], deadline)


async def run_pixels(
    request: Request, pixels: Sequence[NDArray[np.uint8]], deadline: Deadline
) -> list[Answer | RequestError]:
    """One answer or one refusal per array uint8 [3, native, native], in order; raises as `recognise_many`."""
    service = service_of(request)
    places = service.batcher.reserve(len(pixels), deadline.timeout_s, accepted=True)
    with places, WhenGone(request, places.client_left):
        for slot, image in zip(places.slots, pixels, strict=True):
            service.batcher.put(slot, image)
        ends = _planned(await places.outcomes())
    _note(exchange_of(request).stages, ends)
    return ends


async def _recognised(
    request: Request, uploads: Sequence[Upload], deadline: Deadline
) -> list[Recognised | RequestError]:
    service, stages = service_of(request), exchange_of(request).stages
    model = service.loaded()
    places = service.batcher.reserve(len(uploads), deadline.timeout_s, accepted=True)
    pictures = [_Picture(slot, upload) for slot, upload in zip(places.slots, uploads, strict=True)]
    total_bytes = sum(len(upload.data) for upload in uploads)
    count = decoding_threads(len(uploads), total_bytes, service.settings.decode_threads)
    jobs = [_Decoding(pictures[first::count], service, model) for first in range(count)]
    with places, WhenGone(request, places.client_left):
        for job in jobs:
            service.pool.submit(job)
        ends = _planned(await places.outcomes())
    stages.add("decode", max(job.ended for job in jobs) - min(job.began for job in jobs))
    _note(stages, ends)
    return [
        Recognised(picture.data, end, model) if isinstance(end, Answer) else end
        for picture, end in zip(pictures, ends, strict=True)
    ]


@dataclass(slots=True)
class _Picture:
    """A file on its way to the engine; `data` are its own bytes, once it is decoded."""

    slot: Slot
    upload: Upload
    data: bytes = b""


def decoding_threads(pictures: int, total_bytes: int, threads: int) -> int:
    """How many of the threads decode the pictures of one request: one for every `SHARE_BYTES`, at most all.

    Small files decode mostly under the interpreter lock, where two threads only stand in each other's way.
    """
    return min(threads, pictures, 1 + total_bytes // SHARE_BYTES)


class _Decoding:
    """A job for a worker thread: decodes pictures and hands their pixels straight to the batcher.

    Those that take no time to decode are handed over together: one by one they would run in small batches.
    """

    def __init__(self, pictures: Sequence[_Picture], service: Service, model: ServedModel) -> None:
        self.began = self.ended = time.perf_counter()
        self._pictures = pictures
        self._settings = service.settings
        self._budget = service.budget
        self._batcher = service.batcher
        self._native_size = model.native_size

    def __call__(self) -> None:
        """Decodes every picture whose caller has not left."""
        handed = time.perf_counter()
        decoded: list[tuple[Slot, NDArray[np.uint8]]] = []
        for picture in self._pictures:
            if not picture.slot.wanted:
                continue
            try:
                picture.data, pixels = jobs.decode_upload(
                    picture.upload, self._settings, self._native_size, self._budget
                )
            except Exception as error:
                self.ended = time.perf_counter()
                self._batcher.fail(picture.slot, error)
                continue
            self.ended = time.perf_counter()
            decoded.append((picture.slot, pixels))
            if self.ended - handed >= HAND_OVER_S:
                _hand_over(self._batcher, decoded)
                handed = self.ended
        _hand_over(self._batcher, decoded)


def _hand_over(batcher: Batcher, decoded: list[tuple[Slot, NDArray[np.uint8]]]) -> None:
    """Lets the decoded pictures wait for a batch, and empties the list."""
    for slot, pixels in decoded:
        batcher.put(slot, pixels)
    decoded.clear()


def _planned(ends: Iterable[Answer | Exception]) -> list[Answer | RequestError]:
    """The same ends; raises those that are not one image's own: a client that left, a bug."""
    planned: list[Answer | RequestError] = []
    for end in ends:
        if isinstance(end, ClientGone) or not isinstance(end, Answer | RequestError):
            raise end
        planned.append(end)
    return planned


def _note(stages: Stages, ends: Iterable[Answer | RequestError]) -> None:
    """Notes the longest time that an image spent in the queue, on its way into a batch, and in the engine."""
    answers = [end for end in ends if isinstance(end, Answer)]
    if answers:
        stages.add("queue", max(answer.queue_s for answer in answers))
        stages.add("copy", max(answer.copy_s for answer in answers))
        stages.add("engine", max(answer.engine_s for answer in answers))


async def keep(request: Request, several: Sequence[Recognised]) -> list[str | None]:
    """The id under which each picture is kept for its heatmap; None for one that is not kept."""
    store = service_of(request).store
    images = [stored_image(one.data, one.answer.frequency_score, one.answer.source_maps) for one in several]
    if not store.shared:
        return await store.put_many(images)
    with exchange_of(request).stages.measure("store"):
        return await store.put_many(images)


async def kept(request: Request, image_id: str) -> StoredImage:
    """The picture of an id; raises `UnknownImage` or `StoreUnreachable`."""
    service = service_of(request)
    if service.store.shared:
        with exchange_of(request).stages.measure("store"):
            stored = await service.store.get(image_id)
    else:
        stored = await service.store.get(image_id)
    if stored is None:
        raise UnknownImage(
            f"expected the id of a picture classified in the last {service.settings.store_ttl_s:g} s, "
            f"found {image_id!r}; classify it again, or send it to POST /heatmap"
        )
    return stored


async def draw(request: Request, stored: StoredImage, how: jobs.Drawing) -> bytes:
    """The heatmap as a file; raises `QueueFull` or `DeadlineExceeded` if the worker threads are behind."""
    service = service_of(request)
    settings = service.settings
    if service.pool.pending >= settings.max_queue_size:
        raise QueueFull(f"expected fewer than {settings.max_queue_size} pictures in work, found that many; try later")
    grid = service.loaded().grid
    timeout_s = Deadline.of(request, settings).timeout_s
    try:
        async with CancelledWhenGone(request), asyncio.timeout(timeout_s):
            with exchange_of(request).stages.measure("draw"):
                return await service.pool.run(jobs.draw, stored, grid, how, settings, service.budget)
    except TimeoutError:
        raise DeadlineExceeded(
            f"expected a drawing within {timeout_s:g} s, found none; the service is busy, try again later"
        ) from None
