"""Recent pictures: kept under an id when they are classified, and found again for their heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from service.api.recognition import Recognised
from service.errors import UnknownImage
from service.http.exchange import exchange_of
from service.runtime.service import Service
from service.store.image_store import StoredImage


async def keep(service: Service, request: Request, pictures: Sequence[Recognised]) -> list[str | None]:
    """The id under which each picture is kept for its heatmap; None for one that is not kept."""
    images = [picture.stored() for picture in pictures]
    if not service.store.shared:
        return await service.store.put_many(images)
    with exchange_of(request).stages.measure("store"):
        return await service.store.put_many(images)


async def find(service: Service, request: Request, image_id: str) -> StoredImage:
    """The picture of an id; raises `UnknownImage` or `StoreUnreachable`."""
    if service.store.shared:
        with exchange_of(request).stages.measure("store"):
            stored = await service.store.get(image_id)
    else:
        stored = await service.store.get(image_id)
    if stored is None:
        raise UnknownImage(
            f"expected the id of a picture that this model classified in the last {service.settings.store_ttl_s:g} s, "
            f"found {image_id!r}; classify it again, or send it to POST /heatmap"
        )
    return stored
