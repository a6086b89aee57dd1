"""Recent images in a Redis that several processes share. Only `store.choice` imports this file: it needs redis-py.

A Redis that is away or slow never takes classification with it: every call ends within `store_timeout_s`, and after
some failures in a row most calls end at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from service.errors import SettingsError, StoreUnreachable
from service.settings import PREFIX, Settings
from service.store.circuit_breaker import CircuitBreaker
from service.store.image_store import StoredImage, new_ids
from service.store.stored_bytes import packed, unpacked

log = logging.getLogger(__name__)

KEY_PREFIX = "freqmerge:image:"

CONNECTIONS = 32
"""Most of one process; who finds them all taken waits, within the same time."""

FAILURES, PAUSE_S = 3, 1.0
"""So many failures in a row, and the store is asked once per pause only."""

SILENCE_S = 60.0
"""Between two lines in the log about failures."""

_ID = re.compile(r"[\w-]{22}", re.ASCII)
"""An id of ours; any other is unknown without asking."""


class RedisStore:
    """Images under unguessable ids; Redis drops them when their time is over or its memory is full."""

    shared = True
    held = None
    """Other processes put and Redis drops: its own exporter knows what it holds."""

    def __init__(self, client: Redis, settings: Settings, on_failure: Callable[[str, int], None]) -> None:
        self._client = client
        self._timeout_s = settings.store_timeout_s
        self._max_bytes = settings.store_max_bytes
        self._ttl_ms = math.ceil(1000 * settings.store_ttl_s)
        self._on_failure = on_failure
        self._breaker = CircuitBreaker(FAILURES, PAUSE_S)
        self._silent_until = 0.0
        self._prefix = KEY_PREFIX
        self._ids = new_ids()

    def serve(self, model: str) -> None:
        """Names the model: images of another one lie under other keys and are unknown."""
        self._prefix = f"{KEY_PREFIX}{model}:"

    async def put_many(self, images: Sequence[StoredImage]) -> list[str | None]:
        """The id under which each image is kept; None for one that is too large or that Redis did not take.

        All go in one round trip, and they can be read by every process when it is over.
        """
        fitting = [image.size_bytes <= self._max_bytes for image in images]
        replies = iter(await self._put([image for image, fits in zip(images, fitting, strict=True) if fits]))
        return [next(replies) if fits else None for fits in fitting]

    async def get(self, image_id: str) -> StoredImage | None:
        """The image of an id; None if it is unknown, evicted or expired. Raises `StoreUnreachable`."""
        if not _ID.fullmatch(image_id):
            return None
        try:
            value: bytes | None = await self._ask(lambda: self._client.get(self._prefix + image_id))
        except StoreUnreachable:
            self._on_failure("get", 1)
            raise
        return None if value is None else unpacked(value)

    def expire(self) -> None:
        """Nothing: Redis does it."""

    async def close(self) -> None:
        """Closes the connections; the images stay, for the other processes."""
        await self._client.aclose()

    async def _put(self, images: Sequence[StoredImage]) -> list[str | None]:
        if not images:
            return []
        ids = [next(self._ids) for _ in images]

        async def send() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for image_id, image in zip(ids, images, strict=True):
                    pipeline.set(self._prefix + image_id, packed(image), px=self._ttl_ms)
                return await pipeline.execute(raise_on_error=False)

        try:
            replies = await self._ask(send)
        except StoreUnreachable:
            self._on_failure("put", len(images))
            return [None] * len(images)
        refused = [reply for reply in replies if isinstance(reply, Exception)]
        if refused:
            self._on_failure("put", len(refused))
            self._tell(refused[0])
        return [None if isinstance(reply, Exception) else name for name, reply in zip(ids, replies, strict=True)]

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What Redis answers; raises `StoreUnreachable`, at once while Redis is known to be away."""
        if not self._breaker.allows():
            raise _unreachable()
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await call()
        except (RedisError, OSError) as error:  # a TimeoutError is an OSError
            self._breaker.failed()
            self._tell(error)
            raise _unreachable() from None
        self._breaker.succeeded()
        return reply

    def _tell(self, error: Exception) -> None:
        """Logs a failure, one per minute at most; neither redis-py nor Redis puts the password into its words."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + SILENCE_S
            why = str(error) or "no answer in time"
            log.warning("store failed", extra={"fields": {"error": type(error).__name__, "detail": why}})


def connect(url: str, timeout_s: float) -> Redis:
    """A client that has not connected yet; raises `SettingsError`, which does not show the address."""
    try:
        # Once more for a connection that had closed unnoticed; SET with a new id and GET may be said twice.
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=timeout_s, retry=Retry(NoBackoff(), 1)
        )
        pool.make_connection()
    except (TypeError, ValueError, RedisError):
        raise SettingsError(
            f"cannot start: {PREFIX}STORE_URL=(hidden) is not valid: expected a port and options as "
            "docs/reference/configuration.md lists them, found others"
        ) from None
    return Redis.from_pool(pool)


def _unreachable() -> StoreUnreachable:
    return StoreUnreachable(
        "expected the store of recent pictures to answer, found it away or too slow; try again in a moment, "
        "or send the picture to POST /heatmap",
        retry_after_s=PAUSE_S,
    )
