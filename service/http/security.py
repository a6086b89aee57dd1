"""Headers that keep a browser from doing anything with an answer but show it."""

from __future__ import annotations

from collections.abc import Iterable

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
_DATA = (*_ALWAYS, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))


def security_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """What to add to an answer with these headers: it may load nothing, unless it brings a policy of its own."""
    return _ALWAYS if any(name == b"content-security-policy" for name, _ in headers) else _DATA
