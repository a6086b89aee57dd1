"""What is wrong with a value that a client sent: which one, what it should have been, and what it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from service.errors import BadParameter

Context = dict[str, Any]

UNKNOWN = "extra_forbidden"
"""Pydantic's name of a field that its model does not have."""

MAX_FAULTS = 8
"""Told in one answer: a client can send any number."""

_WORDS: dict[str, Callable[[Context], str]] = {
    "missing": lambda context: "a value",
    "int_parsing": lambda context: "a whole number",
    "int_type": lambda context: "a whole number",
    "int_from_float": lambda context: "a whole number",
    "int_parsing_size": lambda context: "a whole number of fewer digits",
    "float_parsing": lambda context: "a number",
    "float_type": lambda context: "a number",
    "finite_number": lambda context: "a finite number",
    "greater_than_equal": lambda context: f"{context['ge']:g} or more",
    "less_than_equal": lambda context: f"{context['le']:g} or less",
    "less_than": lambda context: f"less than {context['lt']}",
    "literal_error": lambda context: str(context["expected"]),
    "string_type": lambda context: "a text",
    "string_too_short": lambda context: f"a text of {context['min_length']} characters or more",
    "string_too_long": lambda context: f"a text of {context['max_length']} characters or fewer",
    "bool_type": lambda context: "true or false",
    "bool_parsing": lambda context: "true or false",
    "list_type": lambda context: "a list",
    "too_short": lambda context: f"{context['min_length']} elements or more",
    "too_long": lambda context: f"{context['max_length']} elements or fewer",
    "model_type": lambda context: "an object",
    "model_attributes_type": lambda context: "an object",
}
"""What was expected, in our words instead of the validator's, by pydantic's name of the error."""


class Fault(NamedTuple):
    """One value that is not as it should be; `found` is None where it is missing."""

    parameter: str
    expected: str
    found: str | None
    shown: str | None = None
    """How the sentence names what was found, if not by quoting it."""

    def __str__(self) -> str:
        """The fault as a sentence."""
        shown = self.shown or ("nothing" if self.found is None else repr(self.found))
        return f"{self.parameter}: expected {self.expected}, found {shown}"

    def member(self) -> dict[str, str | None]:
        """The fault as it stands among the `errors` of a problem document."""
        return {"parameter": self.parameter, "expected": self.expected, "found": self.found}


def bad_parameter(faults: Sequence[Fault], advice: str) -> BadParameter:
    """One error for all faults, with what to do about them."""
    sentences = "; ".join(map(str, faults))
    return BadParameter(f"{sentences}; {advice}", extra={"errors": [fault.member() for fault in faults]})


def unknown(name: str, value: str, known: Collection[str], what: str = "parameter") -> Fault:
    """A name that nobody reads, with the one that was meant: a misspelt one would silently do nothing."""
    close = get_close_matches(name[:40].lower(), known, n=1)
    expected = close[0] if close else f"one of {', '.join(known)}"
    return Fault(name[:40], expected, value[:100], f"an unknown {what}")


def fault_of(error: Any, skip: int = 1, known: Collection[str] = ()) -> Fault:
    """The fault that pydantic found, named without the first `skip` parts of its place; `known` are all right names."""
    name = ".".join(str(part) for part in error["loc"][skip:]) or "body"
    if error["type"] == UNKNOWN:
        return unknown(name, str(error["input"]), known)
    return Fault(name, _expected(error), None if error["type"] == "missing" else str(error["input"])[:100])


def _expected(error: Any) -> str:
    words = _WORDS.get(error["type"])
    if words is not None:
        return words(error.get("ctx", {}))
    return str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
