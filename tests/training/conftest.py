import pytest

from model import ModelConfig
from tests.support import standin
from training import train
from training.config import TrainConfig
from training.run import arithmetic


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The stand-in data set."""
    return standin.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _no_bf16(monkeypatch):
    """Runs compute in float32 here, so that one number holds on every processor."""
    monkeypatch.setattr(arithmetic, "has_bf16", lambda: False)


@pytest.fixture
def tiny_model():
    """A model that learns the stand-in in seconds."""
    return ModelConfig(
        backbone="vit_tiny_patch16_224",
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
        image_size=32,
        merge_layers=(1,),
    )


@pytest.fixture
def recipe(data_dir, tmp_path):
    """A short run on the stand-in."""
    return TrainConfig(
        data_dir=data_dir,
        output_dir=tmp_path / "run",
        epochs=3,
        batch_size=40,
        lr=3e-3,
        warmup_epochs=0.5,
        device="cpu",
    )


@pytest.fixture(scope="session")
def trained(data_dir, tmp_path_factory):
    """A checkpoint that has learned something of the stand-in: 16 patches, three blocks of which one merges."""
    config = TrainConfig(
        data_dir=data_dir,
        output_dir=tmp_path_factory.mktemp("trained"),
        epochs=6,
        batch_size=40,
        lr=3e-3,
        warmup_epochs=0.5,
        device="cpu",
        augment=False,
        val_fraction=0.0,
    )
    model = ModelConfig(
        backbone="vit_tiny_patch16_224",
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
        image_size=32,
        merge_layers=(1,),
    )
    train.train(config, model)
    return config.checkpoint_path
