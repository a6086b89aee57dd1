"""The programs of Debian's package `prometheus`, which these tests need."""

from __future__ import annotations

import shutil

import pytest


def program(name: str) -> str:
    """The path of a program; the test fails with a remedy where it is missing, for a skipped check is none."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(
            f"expected the program {name} on the PATH, found none: install Prometheus (Debian, Ubuntu: apt install "
            "--no-install-recommends prometheus; macOS: brew install prometheus), or leave these tests out: "
            "make test PYTEST_ARGS='--ignore tests/docker/test_prometheus.py'"
        )
    return found
