"""`python -m service.openapi_file > docs/openapi.json`: the OpenAPI document of this version."""

from __future__ import annotations

import json
import sys

from service.app import create_app
from service.settings import Settings


def text() -> str:
    """The document as it is kept in docs/openapi.json; no setting changes it."""
    # Not validated: that would read the environment, which may hold what is only right for another machine.
    app = create_app(Settings.model_construct())
    return json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
