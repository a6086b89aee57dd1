"""Whether a browser could ever send an origin (RFC 6454), and if not, why. Pure."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

ANY = "*"

DEFAULT_PORTS = {"http": 80, "https": 443}

_ORIGIN = re.compile(
    r"(?P<scheme>[^:/]*)://(?P<host>\[[^\]]*\]|[^:/?#@]*)(:(?P<port>[^/?#@]*))?(?P<rest>.*)", re.DOTALL
)
_LABELS = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_NUMBER = re.compile(r"(.*\.)?(\d+|0x[\da-f]*)\.?")
"""A host that browsers take for an IPv4 address, and spell as one."""


def fault(origin: str) -> str | None:
    """What is wrong with an origin and what to write instead; None if a browser may send it, or it is `*`."""
    if origin == ANY:
        return None
    if not origin:
        return "nothing between two commas; remove one of them"
    if ANY in origin:
        return f"a wildcard inside {origin!r}; list every origin, or write * alone for any"
    parts = _ORIGIN.fullmatch(origin)
    if parts is None:
        return f"no scheme in {origin!r}; write https:// or http:// before it"
    scheme, host, port, rest = parts["scheme"], parts["host"], parts["port"], parts["rest"]
    if scheme.lower() not in DEFAULT_PORTS:
        return f"the scheme {scheme!r} in {origin!r}; only pages of http and https can call the service"
    if rest:
        return _beyond(origin, rest)
    return _host_fault(origin, host) or _port_fault(origin, port) or _spelling_fault(origin, scheme, host, port)


def _beyond(origin: str, rest: str) -> str:
    """What stands behind host and port."""
    if rest.startswith("@"):
        return f"a user name in {origin!r}; an origin has none"
    what = "a trailing slash" if rest == "/" else f"more than an origin, {rest!r},"
    return f"{what} in {origin!r}; write {origin.removesuffix(rest)}"


def _host_fault(origin: str, host: str) -> str | None:
    if host.startswith("["):
        try:
            canonical = f"[{IPv6Address(host[1:-1])}]"
        except AddressValueError:
            return f"no IPv6 address in {origin!r}; write one as in http://[::1]:3000"
        return _other_host(origin, host, canonical) if host.lower() != canonical else None
    if not host.isascii():
        try:
            return _other_host(origin, host, host.encode("idna").decode())
        except UnicodeError:
            return f"no host name in {origin!r}; write the name of a host, in punycode"
    if _NUMBER.fullmatch(host.lower()):
        return None if _is_ipv4(host) else f"no IPv4 address in {origin!r}; write one as in http://127.0.0.1:3000"
    if not _LABELS.fullmatch(host.lower()):
        return f"no host name in {origin!r}; write one as in https://shop.example"
    return None


def _is_ipv4(host: str) -> bool:
    try:
        return str(IPv4Address(host)) == host
    except AddressValueError:
        return False


def _other_host(origin: str, host: str, sent: str) -> str:
    return f"a host in {origin!r} that browsers spell otherwise; write {origin.replace(host, sent, 1)}"


def _port_fault(origin: str, port: str | None) -> str | None:
    if port is None or (port.isascii() and port.isdecimal() and len(port) < 9 and 0 < int(port) < 1 << 16):
        return None
    return f"no port after the colon in {origin!r}; write one of 1..65535, or leave the colon out"


def _spelling_fault(origin: str, scheme: str, host: str, port: str | None) -> str | None:
    """What browsers spell otherwise: they send lower case, and no port that the scheme implies."""
    name = f"{scheme}://{host}".lower()
    implied = port is not None and int(port) == DEFAULT_PORTS[scheme.lower()]
    sent = name if port is None or implied else f"{name}:{int(port)}"
    if sent == origin:
        return None
    if implied:
        what = "a default port"
    else:
        what = "upper case" if name != f"{scheme}://{host}" else "a port with zeros before it"
    return f"{what} in {origin!r}, which browsers never send; write {sent}"
