"""What is served: an engine, and everything that the service says of its model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from model.config import ModelConfig
from model.engines.engine import Engine
from model.manifest import Manifest


@dataclass(frozen=True, slots=True)
class ServedModel:
    """An engine, not warm yet, and the description of its model."""

    engine: Engine
    manifest: Manifest
    config: ModelConfig
    """The config in force: the manifest's, with the operator's overrides."""
    schedule: tuple[int, ...]
    grid: tuple[int, int]
    parameters: int
    lanes: int = 1
    """Batches that the engine takes at a time."""
    elsewhere: bool = False
    """Whether the engine runs in another process, perhaps on another machine."""

    @property
    def native_size(self) -> int:
        """Side of the square that a picture is reduced to, in pixels."""
        return self.manifest.preprocess.native_size

    @property
    def fingerprint(self) -> str:
        """The same for processes that draw each other's pictures alike: checkpoint, grid and token counts."""
        drawn = (self.manifest.digest, self.grid, self.config.merge_layers, self.schedule)
        return hashlib.sha256(repr(drawn).encode()).hexdigest()[:16]
