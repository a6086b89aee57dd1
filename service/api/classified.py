"""What a client is told about one recognised picture, on every route that classifies."""

from __future__ import annotations

from typing import Any

from service.api.pipeline import Recognised
from service.api.predictions import most_probable
from service.runtime.service import Service


def classified(
    service: Service, recognised: Recognised, image_id: str | None, top_k: int, base: str = ""
) -> dict[str, Any]:
    """The predictions, and where the heatmap is of a picture kept under this id; counts the prediction.

    `base` leads from the route to the service's root: the address is relative, so that it also resolves behind a
    proxy that adds a prefix.
    """
    predictions = most_probable(recognised.answer.logits, service.labels, top_k)
    service.metrics.predicted(predictions[0]["class_id"])
    return {
        "image_id": image_id,
        "heatmap_url": f"{base}heatmap?image_id={image_id}" if image_id else None,
        "predictions": predictions,
        "warnings": list(recognised.warnings),
    }
