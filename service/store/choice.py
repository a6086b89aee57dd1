"""Where recent images are kept: in memory, or where the settings say."""

from __future__ import annotations

from collections.abc import Callable

from service.errors import StartupError
from service.settings import PREFIX, Settings
from service.store.image_store import ImageStore
from service.store.memory_store import MemoryStore


def open_store(settings: Settings, on_failure: Callable[[str, int], None]) -> ImageStore:
    """The store, which has not asked anybody yet; raises `StartupError` if a package is missing.

    `on_failure` is called with an operation, put or get, and the number of images for which it failed.
    """
    if not settings.keeps_images or settings.store_url is None:
        most = settings.store_max_images if settings.keeps_images else 0
        return MemoryStore(most, settings.store_max_bytes, settings.store_ttl_s)
    try:
        from service.store.redis_store import RedisStore, connect
    except ImportError as error:
        raise StartupError(
            f"expected the package redis, which {PREFIX}STORE_URL needs, found none ({error}); "
            "install it: pip install 'freqmerge[redis]'"
        ) from None
    client = connect(settings.store_url.get_secret_value(), settings.store_timeout_s)
    return RedisStore(client, settings, on_failure)
