"""Recent images in this process's memory: nothing touches a disk, and nothing survives the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cachetools import TTLCache

from service.store.image_store import Held, StoredImage, new_ids


class MemoryStore:
    """Images of this process, bounded in number, bytes and age; the least recently used one goes first."""

    shared = False

    def __init__(
        self, max_images: int, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.held = Held(0, 0)
        """What was kept after the last change: metrics read it on another thread, where the cache must not be asked."""
        self._max_images = max_images
        self._ids = new_ids()
        self._max_bytes = max_bytes
        self._images: TTLCache[str, StoredImage] = TTLCache(
            max_bytes, ttl_s, timer=clock, getsizeof=lambda image: image.size_bytes
        )

    def serve(self, model: str) -> None:
        """Nothing: a process has one model."""

    async def put_many(self, images: Sequence[StoredImage]) -> list[str | None]:
        """The id under which each image is kept; None for one that the store cannot hold."""
        ids = [self._put(image) for image in images]
        self._count()
        return ids

    def _put(self, image: StoredImage) -> str | None:
        if self._max_images == 0 or image.size_bytes > self._max_bytes:
            return None
        image_id = next(self._ids)
        with self._images.timer:  # at one moment, or the image to pop might expire on its own before
            while len(self._images) >= self._max_images:
                self._images.popitem()
            self._images[image_id] = image
        return image_id

    async def get(self, image_id: str) -> StoredImage | None:
        """The image of an id; None if it is unknown, evicted or expired. To be looked at does not make it younger."""
        return self._images.get(image_id)

    def expire(self) -> None:
        """Drops every image whose time is over."""
        self._images.expire()
        self._count()

    async def close(self) -> None:
        """Drops everything."""
        self._images.clear()
        self._count()

    def _count(self) -> None:
        self.held = Held(len(self._images), int(self._images.currsize))
