"""A bound on the memory that request bodies take."""

from __future__ import annotations

from service.errors import QueueFull


class BodyBudget:
    """Bytes of request bodies in memory, each from its arrival to the end of its request; belongs to one event loop.

    The queue alone does not bound them: a client that sends slowly holds no place in it.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        """Bytes held now; at most the limit."""

    def has(self, size: int) -> bool:
        """Whether so many bytes more are free."""
        return self.held + size <= self.limit

    def take(self, size: int) -> None:
        """Holds so many bytes more; raises `QueueFull`."""
        if not self.has(size):
            raise QueueFull(
                f"expected room for the request body among the {self.limit:,} bytes that all bodies may take, found "
                "it taken; try again in a second",
                retry_after_s=1.0,
            )
        self.held += size

    def give(self, size: int) -> None:
        """Frees them."""
        self.held -= size
