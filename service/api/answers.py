"""Answers as bytes: JSON is encoded once, by us, without a model of it in between."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response


def json_answer(body: dict[str, Any]) -> Response:
    """The body as a JSON response."""
    return Response(orjson.dumps(body), media_type="application/json")
