import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from tests.support import int8

# Tiny tensors: a second thread only waits, and starves the server processes that some tests start.
torch.set_num_threads(1)

# A busy machine is not a failure, and a failure can be repeated.
hypothesis.settings.register_profile("freqmerge", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("freqmerge")


ONE_AT_A_TIME = ("tests/docker/", "tests/load/", "tests/service/http/", "tests/service/pictures/", "tests/service/ray/")
"""Where tests measure times or start clusters: side by side they would be in each other's way."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With several processes (`make test`), the tests of a file stay in one, in their order, and these files too.

    Not by marks and `--dist loadgroup`: pytest-xdist 3.8 writes the group where pytest 9.2 no longer reads it.
    """
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return "one at a time" if nodeid.startswith(ONE_AT_A_TIME) else nodeid.split("::", 1)[0]


@pytest.fixture(scope="session")
def int8_export(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> tuple[Path, list[str]]:
    """A tiny checkpoint with its int8 artifact beside it, and what the export printed: made once, never changed."""
    if worker_id == "master":  # the only process
        return int8.export(tmp_path_factory.mktemp("int8"))
    shared = tmp_path_factory.getbasetemp().parent
    made = shared / "int8.json"
    with FileLock(shared / "int8.lock"):
        if not made.exists():
            path, printed = int8.export(tmp_path_factory.mktemp("int8"))
            made.write_text(json.dumps([str(path), printed]))
        path, printed = json.loads(made.read_text())
        return Path(path), printed
