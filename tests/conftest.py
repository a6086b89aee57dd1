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


@pytest.fixture(scope="session")
def int8_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A tiny checkpoint with its int8 artifact beside it, and what the export printed: made once, never changed."""
    return int8.export(tmp_path_factory.mktemp("int8"))
