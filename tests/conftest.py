from pathlib import Path

import hypothesis
import pytest
import torch

from tests.support import int8

# Tiny tensors: a second thread only waits, and starves the server processes that some tests start.
torch.set_num_threads(1)

# A busy machine is not a failure, and a failure can be repeated.
hypothesis.settings.register_profile("freqmerge", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("freqmerge")


ONE_AT_A_TIME = ("tests/docker/", "tests/load/", "tests/service/http/", "tests/service/pictures/", "tests/service/ray/")
"""Where tests measure times or start clusters: side by side they would be in each other's way."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes (`make test`), the tests of a file stay in one, in their order, and these files too."""
    for item in items:
        file = item.path.relative_to(config.rootpath).as_posix()
        item.add_marker(pytest.mark.xdist_group("one at a time" if file.startswith(ONE_AT_A_TIME) else file))


@pytest.fixture(scope="session")
def int8_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A tiny checkpoint with its int8 artifact beside it, and what the export printed: made once, never changed."""
    return int8.export(tmp_path_factory.mktemp("int8"))
