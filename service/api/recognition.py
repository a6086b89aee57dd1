"""From the bytes of pictures to the engine's answers, on every route that takes some: admitted, decoded, run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from service.batching.batcher import Batcher, Reservation
from service.batching.waiting import Answer, Slot
from service.errors import ClientGone, RequestError
from service.http import forms
from service.http.body import Upload, read_upload
from service.http.deadline import Deadline
from service.http.disconnect import WhenGone
from service.http.exchange import exchange_of
from service.pictures import jobs
from service.pictures.decoding import COSTLY_S, QUICK_S, Costly
from service.runtime.served import ServedModel
from service.runtime.service import Service
from service.store.image_store import StoredImage, stored_image

SHARE_BYTES = 1 << 18
"""Of the files of one request, what one thread decodes before another one helps."""

HAND_OVER_S = 0.02
"""How long a thread keeps decoded pictures of one request back, so that they reach the engine together."""


QUICK_BYTES = 1 << 12
"""The largest body whose picture may be decoded on the event loop: so few bytes are walked over in a millisecond."""

_QUEUE_S, _COPY_S, _ENGINE_S = attrgetter("queue_s"), attrgetter("copy_s"), attrgetter("engine_s")


class Recognised(NamedTuple):
    """A picture, taken out of its request, with the engine's answer."""

    data: bytes
    answer: Answer
    model: ServedModel
    warnings: tuple[str, ...] = ()
    """What is wrong with the file although it was decoded."""

    def stored(self) -> StoredImage:
        """What is needed to draw its heatmap."""
        return stored_image(self.data, self.answer.frequency_scores, self.answer.source_maps)


async def recognise(service: Service, request: Request) -> Recognised:
    """The answer for the picture in the body; raises the `UploadError`s and all that admission refuses.

    A full queue is refused before the body is read, and admission counts the image before it is decoded.
    """
    settings = service.settings
    deadline = Deadline.of(request, settings)
    service.accepting()
    with exchange_of(request).stages.measure("read"):
        upload = await read_upload(request, service.bodies, settings.max_upload_bytes)
    [end] = await recognise_many(service, request, [upload], deadline)
    if isinstance(end, RequestError):
        raise end
    return end


async def recognise_many(
    service: Service, request: Request, uploads: Sequence[Upload], deadline: Deadline
) -> list[Recognised | RequestError]:
    """One answer or one refusal per file, in order; the files were read while `service.accepting` let them.

    Raises what refuses them all: `QueueFull` if there is not room for every one, `NotReady`, `ClientGone`.
    """
    model = service.loaded()
    places = service.batcher.reserve(len(uploads), deadline.timeout_s, accepted=True)
    count = decoding_threads(len(uploads), sum(len(upload.data) for upload in uploads), service.settings.decode_threads)
    files: dict[int, jobs.Decoded] = {}
    pictures = list(zip(range(len(uploads)), places.slots, uploads, strict=True))
    decodings = [_Decoding(service, model, pictures[first::count], files) for first in range(count)]
    with places:
        if not (len(uploads) == 1 and len(uploads[0].data) <= QUICK_BYTES and decodings[0].quickly()):
            for decoding in decodings:
                service.pool.submit(decoding)
        ends = await _ends(request, places)
    exchange_of(request).stages.add(
        "decode", min(decoding.began for decoding in decodings), max(decoding.ended for decoding in decodings)
    )
    _note_stages(request, ends)
    return [
        Recognised(files[index].data, end, model, files[index].warnings) if isinstance(end, Answer) else end
        for index, end in enumerate(ends)
    ]


async def run_pixels(
    service: Service, request: Request, pixels: Sequence[NDArray[np.uint8]], deadline: Deadline
) -> list[Answer | RequestError]:
    """One answer or one refusal per array uint8 [3, native, native], in order; raises as `recognise_many`."""
    with service.batcher.reserve(len(pixels), deadline.timeout_s, accepted=True) as places:
        for slot, image in zip(places.slots, pixels, strict=True):
            service.batcher.put(slot, image)
        ends = await _ends(request, places)
    _note_stages(request, ends)
    return ends


def decoding_threads(pictures: int, total_bytes: int, threads: int) -> int:
    """How many of the threads decode the pictures of one request: one for every `SHARE_BYTES`, at most all.

    Small files decode mostly under the interpreter lock, where two threads only stand in each other's way.
    """
    return min(threads, pictures, 1 + total_bytes // SHARE_BYTES)


class _Decoding:
    """A job for a worker thread: decodes pictures and hands their pixels straight to the batcher.

    Those that take no time to decode are handed over together: one by one they would run in small batches. Costly ones
    are left to processes of their own; one that is not worth a thread is for `quickly`. `files` receives each decoded
    picture under the number that `pictures` gives it.
    """

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        pictures: Sequence[tuple[int, Slot, Upload]],
        files: dict[int, jobs.Decoded],
    ) -> None:
        self.began = self.ended = time.perf_counter()
        self._pictures = pictures
        self._files = files
        self._service = service
        self._batcher = service.batcher
        self._native_size = model.native_size

    def quickly(self) -> bool:
        """Decodes the only picture at once, on the event loop, if it costs next to nothing; False if it does not.

        So little memory is not counted: the event loop may not wait for it.
        """
        [(index, slot, upload)] = self._pictures
        try:
            pixels = self._decode(index, slot, upload, within_s=QUICK_S)
        except Costly:
            return False
        if pixels is not None:
            self._batcher.put(slot, pixels)
        return True

    def __call__(self) -> None:
        """Decodes every picture whose caller has not left."""
        handed = time.perf_counter()
        waiting: list[tuple[Slot, NDArray[np.uint8]]] = []
        for index, slot, upload in self._pictures:
            if not slot.wanted:
                continue
            try:
                pixels = self._decode(index, slot, upload, budget=self._service.budget, within_s=COSTLY_S)
            except Costly:
                self._service.costly_pool.submit(partial(self._decode_elsewhere, index, slot, upload))
                continue
            if pixels is None:
                continue
            waiting.append((slot, pixels))
            if self.ended - handed >= HAND_OVER_S:
                _hand_over(self._batcher, waiting)
                handed = self.ended
        _hand_over(self._batcher, waiting)

    def _decode_elsewhere(self, index: int, slot: Slot, upload: Upload) -> None:
        """The same for one costly picture, on a thread that may wait for a process."""
        if not slot.wanted:
            return
        pixels = self._decode(index, slot, upload, budget=self._service.budget, elsewhere=self._service.workers.decode)
        if pixels is not None:
            self._batcher.put(slot, pixels)

    def _decode(self, index: int, slot: Slot, upload: Upload, **how: Any) -> NDArray[np.uint8] | None:
        """The pixels, None if the file was refused, of which its caller hears; raises `Costly`."""
        settings = self._service.settings
        try:
            data = forms.picture_file(upload, settings.max_upload_bytes)
            decoded = self._files[index] = jobs.decode_file(
                data, settings, self._native_size, wanted=lambda: slot.wanted, **how
            )
        except Costly:
            raise
        except Exception as error:  # whatever it is, the caller has to hear of it
            self.ended = time.perf_counter()  # before it hears
            self._batcher.fail(slot, error)
            return None
        self.ended = time.perf_counter()
        return decoded.pixels


def _hand_over(batcher: Batcher, decoded: list[tuple[Slot, NDArray[np.uint8]]]) -> None:
    """Lets the decoded pictures wait for a batch, and empties the list."""
    for slot, pixels in decoded:
        batcher.put(slot, pixels)
    decoded.clear()


async def _ends(request: Request, places: Reservation) -> list[Answer | RequestError]:
    """How every image ended; raises what is not one image's own: a client that left, a bug."""
    with WhenGone(request, places.client_left):
        ends = await places.outcomes()
    expected: list[Answer | RequestError] = []
    for end in ends:
        if isinstance(end, ClientGone) or not isinstance(end, Answer | RequestError):
            raise end
        expected.append(end)
    return expected


def _note_stages(request: Request, ends: Iterable[Answer | RequestError]) -> None:
    """Notes the longest time that an image spent in the queue, on its way into a batch, and in the engine."""
    answers = [end for end in ends if isinstance(end, Answer)]
    if not answers:
        return
    stages = exchange_of(request).stages
    longest = max(answers, key=_QUEUE_S)
    stages.add("queue", longest.began - longest.queue_s, longest.began)
    longest = max(answers, key=_COPY_S)
    stages.add("copy", longest.began, longest.began + longest.copy_s)
    longest = max(answers, key=_ENGINE_S)
    started = longest.began + longest.copy_s
    stages.add("engine", started, started + longest.engine_s)
