"""Headers that keep a browser from doing anything with an answer but show it."""

from __future__ import annotations

from collections.abc import Iterable

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_DATA = (*_ALWAYS, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))

_CDN = "https://cdn.jsdelivr.net"
_PAGE = (
    *_ALWAYS,
    (
        b"content-security-policy",
        # what the interactive documentation loads: its program from a CDN, the document and the answers from us
        f"default-src 'none'; script-src {_CDN} 'unsafe-inline'; style-src {_CDN} 'unsafe-inline'; "
        "img-src 'self' blob: data: https://fastapi.tiangolo.com; connect-src 'self'; frame-ancestors 'none'".encode(),
    ),
)


def security_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """What to add to an answer with these headers: a page may load its parts, anything else nothing at all."""
    for name, value in headers:
        if name == b"content-type":
            return _PAGE if value.startswith(b"text/html") else _DATA
    return _DATA
