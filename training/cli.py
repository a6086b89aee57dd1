"""Command lines made from configs: every field is a flag, with its default and meaning in --help."""

from __future__ import annotations

import argparse
import shlex
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic.fields import FieldInfo

from model.config import Frozen
from model.errors import FreqMergeError

R = TypeVar("R", bound=Frozen)


def parser(
    program: str, description: str, *records: type[Frozen], without: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser with one flag per field of the records, but for the fields named in `without`."""
    result = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    for record in records:
        group = result.add_argument_group(record.__name__)
        for name, field in record.model_fields.items():
            if name not in without:
                _add(group, name, field)
    return result


def given(record: type[R], arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `record` that the command line named."""
    return {name: value for name, value in vars(arguments).items() if name in record.model_fields}


def command(module: str, arguments: Sequence[str] | None = None) -> str:
    """The line that repeats a run: `python -m module` with its arguments, by default those of this process."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if arguments is None else arguments)])


def run(main: Callable[[], None]) -> None:
    """Runs a command; an error of ours, or of the file system, becomes one line on standard error and exit code 2."""
    try:
        main()
    except (FreqMergeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _add(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    default = field.get_default(call_default_factory=True)
    text = f"{field.description} (default: {_shown(default)})".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)
        group.add_argument(
            f"--no_{name}", dest=name, action="store_false", default=argparse.SUPPRESS, help=f"not {name}"
        )
        return
    many = typing.get_origin(field.annotation) in (tuple, dict)
    alone = field.json_schema_extra.get("alone") if isinstance(field.json_schema_extra, dict) else None
    group.add_argument(
        f"--{name}",
        nargs="+" if many else "?" if alone else None,
        const=alone,
        type=_key_value if typing.get_origin(field.annotation) is dict else _reader(field.annotation),
        action=_Pairs if typing.get_origin(field.annotation) is dict else "store",
        default=argparse.SUPPRESS,
        metavar="KEY=VALUE" if typing.get_origin(field.annotation) is dict else name.upper(),
        help=text,
    )


class _Pairs(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, dict(values))


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    for read in (int, float):
        try:
            return key, read(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value.lower(), value)


def _reader(annotation: Any) -> Callable[[str], Any]:
    """What turns one word of the command line into the field's type; ranges are the config's business."""
    if typing.get_origin(annotation) in (tuple, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal or annotation is Any:
        return str
    return annotation if annotation in (int, float, Path) else str


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(str(item) for item in default)
    if isinstance(default, dict):
        return " ".join(f"{key}={value}" for key, value in default.items()) or "none"
    return "none" if default is None else str(default)
