"""What a store of recent images is, and what it keeps, so that their heatmaps can be asked for.

Kept are the uploaded bytes, never a decoded picture: a 12-megapixel photo takes 4 MB instead of 36, and
nothing has to be encoded while a request waits. `service.store.memory_store` is the default;
`service.store.redis_store` keeps images for several processes.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.config import SCORE_NAMES, ScoreName

ID_BYTES = 16
"""Randomness in an image id: whoever has not been told one cannot guess it."""

IDS_DRAWN = 64
"""Ids for which random bytes are drawn at once."""

ENTRY_OVERHEAD_BYTES = 1024
"""What an entry costs beside its data: id, objects, two index entries."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An uploaded file, and what the engine found in it."""

    data: bytes
    frequency_scores: NDArray[np.float32]
    """The scores of `model.config.SCORE_NAMES`, in order, [scores, patches]."""
    source_maps: NDArray[np.int64]
    """Owner of every patch after each merging block, [merging blocks, patches]."""

    def score(self, name: ScoreName) -> NDArray[np.float32]:
        """One of the scores [patches], 0..1."""
        chosen: NDArray[np.float32] = self.frequency_scores[SCORE_NAMES.index(name)]
        return chosen

    @property
    def size_bytes(self) -> int:
        """Memory that the entry takes."""
        return len(self.data) + self.frequency_scores.nbytes + self.source_maps.nbytes + ENTRY_OVERHEAD_BYTES


def stored_image(data: bytes, frequency_scores: NDArray[np.float32], source_maps: NDArray[np.int64]) -> StoredImage:
    """An entry with its own small arrays; rows of a batch would keep the whole batch alive."""
    return StoredImage(data, frequency_scores.copy(), source_maps.copy())


def new_ids() -> Iterator[str]:
    """Ids that nobody can guess, without end; for one store, on its event loop.

    The operating system is asked for `IDS_DRAWN` at a time: to ask it lets go of the interpreter lock, which the thread
    of the event loop would then have to wait for, at every picture.
    """
    while True:
        drawn = secrets.token_bytes(ID_BYTES * IDS_DRAWN)
        for start in range(0, len(drawn), ID_BYTES):
            yield base64.urlsafe_b64encode(drawn[start : start + ID_BYTES]).rstrip(b"=").decode()


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
