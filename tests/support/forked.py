"""Programs in processes of their own that have torch and timm imported already: each import takes ten seconds.

For what the test run itself cannot do because of its shape checks, such as exporting a model.
"""

from __future__ import annotations

import os
import runpy
import sys
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

TIMEOUT_S = 600

_context = get_context("forkserver")
_context.set_forkserver_preload(["torch.export", "timm", "model", "tests.support.forked"])


def run(kind: str, program: str, *arguments: object) -> CompletedProcess[str]:
    """What `python -m MODULE …` or `python -c CODE …` writes and ends with; a program that hangs is killed."""
    words = list(map(str, arguments))
    with TemporaryDirectory() as folder:
        written = [Path(folder) / name for name in ("out", "err")]
        process = _context.Process(target=_main, args=(kind, program, words, *map(str, written)))
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (path.read_text() if path.exists() else "" for path in written)
    assert process.exitcode is not None
    return CompletedProcess([kind, program, *words], process.exitcode, out, err)


def _main(kind: str, program: str, arguments: list[str], out: str, err: str) -> None:
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, stream.fileno())
        os.close(opened)
    sys.argv = ["-c", *arguments]
    if kind == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
