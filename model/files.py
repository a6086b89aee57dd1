"""Writing a file so that a kill or a full disk never leaves half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name, synced to disk, when the block ends well.

    When the block raises, the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.touch()
    usual = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(usual)  # safetensors writes files that only their owner may read
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by a file holding `text`, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
