"""`python -m tests.load`: measures the service alone and beside its peers, prints goals and writes records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.load import comparison, inside, load_records, markdown_tables, processes, sections
from tests.load.costed_engine import Cost
from tests.load.sections import How

NAME = "service_bench"
PARTS = ("inside", "sweep", "many", "overload", "real", "peers")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when every part has run, goals met or not."""
    options = _parser().parse_args(arguments)
    processes.end_with_context()
    cost = Cost(options.base_ms / 1000, options.per_image_ms / 1000)
    how = How(options.seconds, options.warm_s, cost, options.peers_python, options.rounds)
    command = " ".join(["python -m tests.load", *(sys.argv[1:] if arguments is None else arguments)])
    path, found = options.results, list[dict[str, Any]]()
    for part in options.parts:
        _say(f"{part} …")
        found += [{"base_ms": options.base_ms, "per_image_ms": options.per_image_ms, **one} for one in _run(part, how)]
        path = load_records.write(NAME, command, found, options.results)  # after each part: a later one may fail
    sys.stdout.write(markdown_tables.whole(found) + f"\nrecords: {path}\n")
    return 0


def _run(part: str, how: How) -> list[dict[str, Any]]:
    parts: dict[str, Callable[[How], list[dict[str, Any]]]] = {
        "inside": lambda how: [inside.batcher_added(), inside.decode_cpu_us()],
        "sweep": sections.sweep,
        "many": sections.many_per_request,
        "overload": sections.overload,
        "real": sections.real,
        "peers": lambda how: comparison.compare(how, _say),
    }
    return parts[part](how)


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; all of it")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured seconds of each load")
    parser.add_argument("--warm-s", type=float, default=1.0, help="seconds of load before each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="times that every server of the comparison is started")
    parser.add_argument("--base-ms", type=float, default=2.0, help="cost of a batch of the fake engine")
    parser.add_argument("--per-image-ms", type=float, default=0.1, help="cost of each image of a batch")
    parser.add_argument("--peers-python", type=Path, default=How().python, help="Python that has the peers")
    parser.add_argument("--results", type=Path, default=load_records.RESULTS, help="folder of the records")
    return parser


if __name__ == "__main__":
    sys.exit(main())
