"""What the merging blocks of a model left of a picture, and which of them a client asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.errors import BadParameter
from service.runtime.loading import ServedModel
from service.store.image_store import StoredImage


def position(layer: int | None, merge_layers: Sequence[int]) -> int:
    """Where a merging block stands among them, the last one for None; raises `BadParameter`."""
    if layer is None:
        return len(merge_layers) - 1
    if layer not in merge_layers:
        expected = f"one of {', '.join(map(str, merge_layers))}"
        raise BadParameter(
            f"layer: expected {expected}, found {layer}; the model merges tokens in these blocks only",
            extra={"errors": [{"parameter": "layer", "expected": expected, "found": str(layer)}]},
        )
    return merge_layers.index(layer)


def numbers(stored: StoredImage, served: ServedModel, block: int) -> dict[str, Any]:
    """A `schemas.HeatmapData`, its source map that of the merging block at this position."""
    maps = stored.source_maps.reshape(-1, *served.grid).tolist()
    layers = served.config.merge_layers
    return {
        "grid": served.grid,
        "score": stored.frequency_score.reshape(served.grid).astype(float).round(6).tolist(),
        "source_map": maps[block],
        "merges": [
            {"layer": layer, "tokens": served.schedule[layer], "source_map": owners}
            for layer, owners in zip(layers, maps, strict=True)
        ],
    }
