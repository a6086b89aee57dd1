"""API keys, if the operator gave any out: plain ASGI, and the same time for every key that is presented."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import SettingsError, Unauthorized
from service.http.prefix import route_path
from service.http.problems import problem_response
from service.settings import PREFIX, Settings

OPEN = frozenset({"/", "/live", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"})
"""Paths that answer without a key: probes and metrics, which machines ask for, and how to use the rest."""

OPEN_FOLDERS = ("/static/", "/samples/")
"""What the pages are made of."""

_KEY = re.compile(r"[!-+\--~]{8,512}\Z")
"""Visible ASCII without a comma; shorter keys could be guessed."""


class Keys:
    """The keys that were given out, as digests: a dump of the process shows none of them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple({_digest(key) for key in keys})

    def accept(self, given: str) -> bool:
        """Whether this is one of the keys; compares with all of them, each in constant time."""
        digest, found = _digest(given), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


class RequireKey:
    """Wraps an app; a request without a key that `keys` accept gets 401, except on `OPEN` paths."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http" or _open(route_path(scope)):
            await self._app(scope, receive, send)
            return
        given = presented(Headers(scope=scope))
        accepted = [self._keys.accept(key) for key in given]
        if any(accepted):
            await self._app(scope, receive, send)
        else:
            await problem_response(_unauthorized(bool(given)), Request(scope))(scope, receive, send)


def _open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def presented(headers: Headers) -> list[str]:
    """The keys that a request carries: `Authorization: Bearer KEY`, `X-API-Key: KEY`, or both."""
    scheme, credentials = get_authorization_scheme_param(headers.get("authorization"))
    bearer = credentials if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, headers.get("x-api-key", "").strip()) if key]


def read_keys(settings: Settings) -> Keys | None:
    """The keys of the settings, None if they ask for none; raises `SettingsError`, which names no key.

    A list without a single key is refused: it would open the service to everybody.
    """
    if settings.api_keys is None and settings.api_keys_file is None:
        return None
    listed = settings.api_keys.get_secret_value().split(",") if settings.api_keys else []
    keys = [*_checked(listed, "API_KEYS"), *_checked(_lines(settings.api_keys_file), "API_KEYS_FILE")]
    if not keys:
        raise SettingsError(
            f"cannot start: expected an API key in {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE, found none; "
            "write one, or unset both to serve everybody"
        )
    return Keys(keys)


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise SettingsError(
            f"cannot start: {PREFIX}API_KEYS_FILE={path} cannot be read: {why}; expected one API key per line"
        ) from None
    return [line for line in lines if not line.lstrip().startswith("#")]


def _checked(entries: Iterable[str], setting: str) -> list[str]:
    keys = [entry.strip() for entry in entries if entry.strip()]
    bad = [position for position, key in enumerate(keys, 1) if not _KEY.match(key)]
    if bad:
        raise SettingsError(
            f"cannot start: {PREFIX}{setting} is not valid: expected keys of 8 to 512 visible ASCII characters without "
            f"commas, found another as number {bad[0]} of {len(keys)} (not shown); "
            "make one with: openssl rand -hex 32"
        )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _unauthorized(given: bool) -> Unauthorized:
    challenge = 'Bearer realm="freqmerge"' + (', error="invalid_token"' if given else "")
    return Unauthorized(
        f"expected an API key in the header Authorization (Bearer KEY) or X-API-Key, found "
        f"{'one that is not known' if given else 'none'}; ask the operator for one",
        headers={"WWW-Authenticate": challenge},
    )
