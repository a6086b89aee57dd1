"""Labelled images in memory, and the names of their classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Targets = Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
"""Class ids, or shares of every class where images are mixed."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, by id."""

    names: tuple[str, ...]
    superclasses: tuple[str, ...] = ()
    """Superclass of each class; empty where there are none."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Images:
    """Labelled images, all of one size."""

    pixels: UInt8[Tensor, "count 3 side side"]
    labels: Int[Tensor, " count"]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Images:
        """The images at these positions."""
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: torch.device) -> Images:
        """The same images on a device."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def batches(self, size: int) -> Iterator[Images]:
        """The images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield Images(self.pixels[start : start + size], self.labels[start : start + size])


def split_off(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Training part and held-out part, drawn by `seed`."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = round(len(images) * fraction)
    return images.take(order[held_out:]), images.take(order[:held_out])
