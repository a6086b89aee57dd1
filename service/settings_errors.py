"""Words for a setting that is not valid: what was found, what is expected, and what the setting is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo


def explain(error: ValidationError, fields: Mapping[str, FieldInfo], prefix: str) -> str:
    """One paragraph on every bad setting; `prefix` makes its name a variable of the environment."""
    return "cannot start: " + "; ".join(_fault(item, fields, prefix) for item in error.errors())


def explain_unknown(names: Sequence[str], fields: Mapping[str, FieldInfo], prefix: str) -> str:
    """One paragraph on variables that are no settings, each with the one that was probably meant."""
    faults = []
    for name in names:
        close = [
            variable(meant, fields[meant], prefix) for meant in get_close_matches(_bare(name, prefix), fields, n=1)
        ]
        faults.append(f"{name} is not a setting" + (f" (did you mean {close[0]}?)" if close else ""))
    return f"cannot start: {'; '.join(faults)}; docs/reference/configuration.md lists them all"


def expectation(field: FieldInfo) -> str:
    """Words for what a setting takes, such as 'a whole number, 1..1024'."""
    kinds = _kinds(field)
    if int in kinds:
        return f"a whole number, {_range(field)}"
    if float in kinds:
        return f"a number, {_range(field)}"
    if Path in kinds:
        return "a path"
    return "a text as described" if kinds & {str, SecretStr} else f"one of {', '.join(get_args(field.annotation))}"


def variable(name: str, field: FieldInfo, prefix: str) -> str:
    """The environment variable of a setting: its alias, or its own name behind the prefix."""
    return field.validation_alias if isinstance(field.validation_alias, str) else prefix + name.upper()


def default(field: FieldInfo) -> str:
    """The default of a setting as an operator would write it."""
    return "unset" if field.default is None else str(field.default)


def _fault(item: Any, fields: Mapping[str, FieldInfo], prefix: str) -> str:
    if not item["loc"]:  # fields that contradict each other: the validator has said it all
        return str(item["msg"]).removeprefix("Value error, ")
    name = _bare(str(item["loc"][0]), prefix)
    field = fields.get(name)
    if field is None:
        return f"{name} is not a setting; docs/reference/configuration.md lists them all"
    assignment = f"{variable(name, field, prefix)}={'(hidden)' if _secret(field) else item['input']}"
    expected = f"expected {expectation(field)} ({field.description}; default {default(field)})"
    return f"{assignment} is not valid: {_reason(item, field) or expected}"


def _reason(item: Any, field: FieldInfo) -> str | None:
    """What a validator of ours has said of the value, unless the value is a secret."""
    ours = item["type"] == "value_error" and not _secret(field)
    return str(item["msg"]).removeprefix("Value error, ") if ours else None


def _bare(name: str, prefix: str) -> str:
    return name.lower().removeprefix(prefix.lower())


def _kinds(field: FieldInfo) -> set[Any]:
    return {field.annotation, *get_args(field.annotation)}


def _secret(field: FieldInfo) -> bool:
    return SecretStr in _kinds(field)


def _range(field: FieldInfo) -> str:
    bounds: dict[str, Any] = {}
    for bound in field.metadata:
        bounds |= {name: getattr(bound, name) for name in ("ge", "gt", "le") if hasattr(bound, name)}
    low = f"above {bounds['gt']}, at most " if "gt" in bounds else f"{bounds.get('ge', '')}.."
    return f"{low}{bounds.get('le', '')}"
