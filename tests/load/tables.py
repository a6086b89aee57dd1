"""`python -m tests.load.tables`: the tables of docs/studies/benchmarks.md, made from the records and nothing else.

A table stands between `<!-- bench: NAME -->` and `<!-- end -->`; the rest of the page is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model import files
from tests.load import load_records, markdown_tables

PAGE = Path("docs/studies/benchmarks.md")
MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_RUN = "Not run yet.\n"

Record = dict[str, Any]


def soak(found: Sequence[Record]) -> str:
    """Hostile files, the soak and its control."""
    rows = []
    for one in found:
        done = f"{one['files']:,} files" if one["kind"] == "hostile" else f"{one['requests']:,} requests"
        bound = one.get("bound_mib", one.get("limit_mib"))
        rows.append(
            (
                one["kind"],
                done,
                f"{one['seconds']:.0f}",
                str(len(one["unplanned"])),
                f"{one['grown_mib']:.0f}",
                f"{bound:.0f}",
                "passed" if one["passed"] else "FAILED",
            )
        )
    head = ("run", "load", "seconds", "unplanned answers", "growth MiB", "bound MiB", "check")
    return markdown_tables.table(head, rows)


BENCH: dict[str, Callable[[Sequence[Record]], str]] = {
    "goals": markdown_tables.goals,
    "peers": markdown_tables.peers,
    "sweep": lambda found: markdown_tables.sweep(found, "freqmerge"),
    "stages": lambda found: markdown_tables.stages(found, "freqmerge"),
    "many": markdown_tables.many,
    "overload": markdown_tables.overload,
    "slow_host": markdown_tables.goals,
    "soak": soak,
    "scale": markdown_tables.scale,
    "kills": markdown_tables.kills,
    "real": lambda found: markdown_tables.sweep(found, "freqmerge_real"),
}


FILES = {
    "slow_host": "service_bench_slow_host",
    "soak": "service_soak",
    "scale": "service_scale",
    "kills": "service_scale",
}
"""Where records are that `tests.load` does not write."""


def made(name: str, results: Path) -> str:
    """The table of that name with its source below."""
    found = load_records.read(FILES.get(name, "service_bench"), results)
    if not found:
        return NOT_RUN
    table = BENCH[name](found)
    return f"{table}\n{markdown_tables.source(found)}"


def fill(page: str, results: Path) -> str:
    """The page with every marked table made anew."""
    return MARKED.sub(lambda found: found[1] + made(found[2], results) + found[3], page)


def main() -> None:
    """Rewrites the tables of the page."""
    files.write_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), load_records.RESULTS))


if __name__ == "__main__":
    main()
