"""Command lines made from configs: every field is a flag, with its default and meaning in --help."""

from __future__ import annotations

import argparse
import shlex
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pydantic.fields import FieldInfo

from model.config import Frozen, Scoring, backbone_arg
from model.errors import ConfigError, FreqMergeError

R = TypeVar("R", bound=Frozen)

NAMES = {"strategies": typing.get_args(Scoring)}
"""What may be said for fields that name something registered."""


def parser(
    program: str, description: str, *records: type[Frozen], without: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser with one flag per field of the records, but for the fields named in `without`."""
    result = _Parser(prog=program, description=description, allow_abbrev=False)
    for record in records:
        group = result.add_argument_group(record.__name__)
        for name, field in record.model_fields.items():
            if name not in without:
                _add(group, name, field)
    return result


def given(record: type[R], arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `record` that the command line named; raises `ConfigError` if one without a default is missing."""
    named = vars(arguments)
    missing = [name for name, field in record.model_fields.items() if field.is_required() and name not in named]
    if missing:
        messages = (f"--{name} is needed: {record.model_fields[name].description}" for name in missing)
        raise ConfigError("; ".join(messages))
    return {name: value for name, value in named.items() if name in record.model_fields}


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
    except KeyboardInterrupt as stopped:
        print(": ".join(["interrupted", *map(str, stopped.args)]), file=sys.stderr)
        sys.exit(130)


def _add(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    default = "required" if field.is_required() else f"default: {_shown(field.get_default(call_default_factory=True))}"
    choices = NAMES.get(name) or _choices(field.annotation)
    hint = f"one of {', '.join(choices)}; {default}" if choices else default
    text = f"{field.description} ({hint})".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(
            f"--{name}", f"--no_{name}", dest=name, action=_Switch, nargs=0, default=argparse.SUPPRESS, help=text
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse prints every flag first."""
        self.exit(2, f"error: {message}; --help lists the flags\n")


class _Switch(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, option_string == f"--{self.dest}")


class _Pairs(argparse.Action):
    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, dict(values))


def _key_value(text: str) -> tuple[str, Any]:
    try:
        return backbone_arg(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _reader(annotation: Any) -> Callable[[str], Any]:
    """What turns one word of the command line into the field's type; ranges are the config's business."""
    annotation = _inner(annotation)
    if typing.get_origin(annotation) is Literal or annotation is Any:
        return str
    return annotation if annotation in (int, float, Path) else str


def _inner(annotation: Any) -> Any:
    """The type of one word: of a tuple's item, or of an optional or annotated value."""
    while typing.get_origin(annotation) in (tuple, types.UnionType, typing.Annotated):
        annotation = typing.get_args(annotation)[0]
    return annotation


def _choices(annotation: Any) -> tuple[str, ...]:
    inner = _inner(annotation)
    return typing.get_args(inner) if typing.get_origin(inner) is Literal else ()


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(str(item) for item in default) or "none"
    if isinstance(default, dict):
        return " ".join(f"{key}={value}" for key, value in default.items()) or "none"
    return "none" if default is None else str(default)
