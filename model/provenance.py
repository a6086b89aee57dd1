"""Which commit a measured number comes from."""

from __future__ import annotations

import subprocess


def commit() -> str:
    """The commit of the working folder, with "-dirty" where files differ from it; "unknown" outside git."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
