"""Query parameters that a route does not have: refused, for a misspelt one would silently do nothing."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from starlette.requests import Request

from service.errors import BadParameter


def refuse_unknown(request: Request, known: Collection[str]) -> None:
    """Raises `BadParameter` if the query has a parameter that is not `known`, with the one that was meant."""
    if not request.scope["query_string"]:
        return
    given = request.query_params
    unknown = sorted({name for name in given if name not in known})[:8]
    if unknown:
        told = "; ".join(
            f"{name[:40]}: expected {_expected(name, known)}, found an unknown parameter" for name in unknown
        )
        raise BadParameter(
            f"{told}; see the documentation at /docs",
            extra={"errors": [_fault(name, given[name], known) for name in unknown]},
        )


def _fault(name: str, value: str, known: Collection[str]) -> dict[str, str]:
    return {"parameter": name[:40], "expected": _expected(name, known), "found": value[:100]}


def _expected(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name[:40].lower(), known, n=1)
    if close:
        return close[0]
    return f"one of {', '.join(known)}" if known else "no parameter"
