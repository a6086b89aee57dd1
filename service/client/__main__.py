"""`python -m service.client photo.jpg --heatmap out.png`: labels of a picture, and its heatmap as a file.

Exit codes: 0 answered, 1 the service refused, 2 a bad argument or file, 3 no service there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from service.client import DEFAULT_URL, Answer, Client, Refused, Unreachable

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg", ".json": "json"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.heatmap and options.heatmap.suffix.lower() not in FORMATS:
        parser.error(f"--heatmap: expected a file name that ends in {', '.join(FORMATS)}, found {options.heatmap}")
    try:
        _run(options)
    except Refused as error:
        return _fail(1, f"{error} [request {error.request_id}]")
    except Unreachable as error:
        return _fail(3, f"{error} (--url names another address)")
    except OSError as error:
        return _fail(2, f"{error.filename}: {error.strerror}")
    except ValueError as error:
        return _fail(2, str(error))
    return 0


def _run(options: argparse.Namespace) -> None:
    client = Client(options.url, _key(options.api_key_file), options.timeout)
    photo = options.photo.read_bytes()
    answer = client.classify(photo, options.top_k)
    sys.stdout.write(json.dumps(answer.body, indent=2) + "\n" if options.json else _table(answer))
    for warning in answer.body.get("warnings", []):
        sys.stderr.write(f"freqmerge: {warning}\n")
    if options.heatmap:
        format = FORMATS[options.heatmap.suffix.lower()]
        source = answer if answer.heatmap_url else photo
        options.heatmap.write_bytes(client.heatmap(source, view=options.view, score=options.score, format=format))


def _key(path: Path | None) -> str | None:
    """The first line of the file that is neither empty nor a comment; a key on the command line would show in `ps`."""
    if path is None:
        return None
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{path}: expected an API key, found none")
    return keys[0]


def _table(answer: Answer) -> str:
    rows = [
        f"{row.probability:8.4f}  {row.label}{f' ({row.superclass})' if row.superclass else ''}\n"
        for row in answer.predictions
    ]
    return "".join(rows)


def _fail(code: int, message: str) -> int:
    sys.stderr.write(f"freqmerge: {message}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.client",
        description="Asks a FreqMerge service for the labels of a picture.",
        epilog="exit codes: 0 answered, 1 the service refused, 2 a bad argument or file, 3 no service there",
    )
    parser.add_argument("photo", type=Path, help="JPEG, PNG, WebP or GIF file")
    parser.add_argument("--heatmap", type=Path, metavar="OUT", help=f"where to write it: {', '.join(FORMATS)}")
    parser.add_argument("--view", default="overlay", help="overlay (default), score, merged, original or panel")
    parser.add_argument(
        "--score", default="lfgm", help="which score it shows: lfgm (default, of the channel mean) or energy (of all)"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="how many labels (default 5)")
    parser.add_argument("--json", action="store_true", help="print the whole answer")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"address of the service (default {DEFAULT_URL})")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file whose first line is the API key")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds to wait (default 60)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
