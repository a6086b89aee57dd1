"""Recent images, bounded in number, bytes and age, so that their heatmaps can be asked for.

Kept are the uploaded bytes, never a decoded picture: a 12-megapixel photo takes 4 MB instead of 36, and
nothing has to be encoded while a request waits. `MemoryStore` is the default: nothing touches a disk, and
nothing survives the process. `service.store.redis_store` keeps them for several processes.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

ID_BYTES = 16
"""Randomness in an image id: whoever has not been told one cannot guess it."""

ENTRY_OVERHEAD_BYTES = 1024
"""What an entry costs beside its data: id, objects, two index entries."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An uploaded file, and what the engine found in it."""

    data: bytes
    frequency_score: NDArray[np.float32]
    source_maps: NDArray[np.int64]
    """Owner of every patch after each merging block, [merging blocks, patches]."""

    @property
    def size_bytes(self) -> int:
        """Memory that the entry takes."""
        return len(self.data) + self.frequency_score.nbytes + self.source_maps.nbytes + ENTRY_OVERHEAD_BYTES


def stored_image(data: bytes, frequency_score: NDArray[np.float32], source_maps: NDArray[np.int64]) -> StoredImage:
    """An entry with its own small arrays; rows of a batch would keep the whole batch alive."""
    return StoredImage(data, frequency_score.copy(), source_maps.copy())


def new_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_urlsafe(ID_BYTES)


class Held(NamedTuple):
    """What a store holds."""

    images: int
    size_bytes: int


class ImageStore(Protocol):
    """Images under unguessable ids. Belongs to one event loop."""

    shared: bool
    """Whether other processes see the images, so that asking takes time and may fail."""

    @property
    def held(self) -> Held | None:
        """What is kept; None if this process cannot know."""
        ...

    def serve(self, model: str) -> None:
        """Names the model (`ServedModel.fingerprint`) whose images are kept and found from now on."""
        ...

    async def put_many(self, images: Sequence[StoredImage]) -> list[str | None]:
        """The id under which each image is kept; None for one that cannot be. Raises nothing."""
        ...

    async def get(self, image_id: str) -> StoredImage | None:
        """The image of an id; None if it is unknown, evicted or expired. Raises `StoreUnreachable`."""
        ...

    def expire(self) -> None:
        """Drops every image whose time is over; called now and then."""
        ...

    async def close(self) -> None:
        """Lets go of everything."""
        ...


class MemoryStore:
    """Images of this process; the least recently used one goes first."""

    shared = False

    def __init__(
        self, max_images: int, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.size_bytes = 0
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._by_use: OrderedDict[str, StoredImage] = OrderedDict()
        self._expiry: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_use)

    @property
    def held(self) -> Held:
        """What is kept."""
        return Held(len(self), self.size_bytes)

    def serve(self, model: str) -> None:
        """Nothing: a process has one model."""

    async def put_many(self, images: Sequence[StoredImage]) -> list[str | None]:
        """The id under which each image is kept; None for one that the store cannot hold."""
        return [self._put(image) for image in images]

    def _put(self, image: StoredImage) -> str | None:
        if self._max_images == 0 or image.size_bytes > self._max_bytes:
            return None
        while len(self) >= self._max_images or self.size_bytes + image.size_bytes > self._max_bytes:
            self._remove(next(iter(self._by_use)))
        image_id = new_id()
        self._by_use[image_id] = image
        self._expiry[image_id] = self._clock() + self._ttl_s
        self.size_bytes += image.size_bytes
        return image_id

    async def get(self, image_id: str) -> StoredImage | None:
        """The image of an id; None if it is unknown, evicted or expired."""
        self.expire()
        if image_id not in self._by_use:
            return None
        self._by_use.move_to_end(image_id)
        return self._by_use[image_id]

    def expire(self) -> None:
        """Drops every image whose time is over."""
        now = self._clock()
        while self._expiry:
            oldest, expires_at = next(iter(self._expiry.items()))
            if expires_at > now:
                return
            self._remove(oldest)

    def clear(self) -> None:
        """Drops everything."""
        self._by_use.clear()
        self._expiry.clear()
        self.size_bytes = 0

    async def close(self) -> None:
        """Drops everything."""
        self.clear()

    def _remove(self, image_id: str) -> None:
        self.size_bytes -= self._by_use.pop(image_id).size_bytes
        del self._expiry[image_id]
