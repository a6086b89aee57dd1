"""What a value should have been, in our words instead of the validator's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Context = dict[str, Any]

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
"""By pydantic's name of the fault."""


def fault(item: Any, skip: int = 1) -> dict[str, Any]:
    """One fault of a validation: the parameter, without the first `skip` parts of its place, expected and found."""
    missing = item["type"] == "missing"
    return {
        "parameter": ".".join(str(part) for part in item["loc"][skip:]) or "body",
        "expected": expected(item),
        "found": None if missing else str(item["input"])[:100],
    }


def told(faults: Iterable[dict[str, Any]]) -> str:
    """All faults as a sentence."""
    return "; ".join(f"{item['parameter']}: expected {item['expected']}, found {_found(item)}" for item in faults)


def expected(item: Any) -> str:
    """What the validator expected."""
    words = _WORDS.get(item["type"])
    if words is not None:
        return words(item.get("ctx", {}))
    return str(item["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def _found(item: dict[str, Any]) -> str:
    return "nothing" if item["found"] is None else repr(item["found"])
