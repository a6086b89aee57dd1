"""The files of the page, the samples and the documentation, by the path at which they are served."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from service.errors import StartupError

HERE = Path(__file__).parents[1]

SWAGGER_PACKAGE = "fastapi_offline"
"""Carries Swagger UI (Apache-2.0), so that /docs needs no other host; only its files are used."""

SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")

MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """One file, ready to be sent."""

    body: bytes
    media_type: str
    etag: str


def read_assets() -> dict[str, Asset]:
    """Every asset by its path, about 3 MB; raises `StartupError` if a package is missing.

    A path that is not in here does not exist: no request ever reaches the file system.
    """
    files = {f"/static/{path.name}": path for path in (HERE / "static").iterdir() if path.suffix in MEDIA_TYPES}
    files |= {f"/samples/{path.name}": path for path in (HERE / "samples").glob("*.jpg")}
    files |= {f"/static/{name}": _swagger() / name for name in SWAGGER_FILES}
    files["/"] = files.pop("/static/index.html")
    files["/docs"] = files.pop("/static/docs.html")
    return {path: _read(file) for path, file in sorted(files.items())}


def _swagger() -> Path:
    package = find_spec(SWAGGER_PACKAGE)
    if package is None or package.origin is None:
        raise StartupError(
            f"expected the package {SWAGGER_PACKAGE}, found none; install the extra: pip install 'freqmerge[service]'"
        )
    return Path(package.origin).parent / "static"


def _read(file: Path) -> Asset:
    body = file.read_bytes()
    return Asset(body, MEDIA_TYPES[file.suffix], f'"{hashlib.sha256(body).hexdigest()[:32]}"')
