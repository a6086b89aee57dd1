import pytest

from model import load_checkpoint, save_checkpoint
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny


@pytest.fixture
def checkpoint(tmp_path_factory):
    """A tiny model that takes pictures of 16 pixels."""
    path = tmp_path_factory.mktemp("engine") / "tiny.safetensors"
    save_checkpoint(path, tiny(), preprocess=Preprocess(native_size=16))
    return load_checkpoint(path)
