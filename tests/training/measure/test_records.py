from pathlib import Path

import pytest

from model import save_checkpoint
from model.config import Frozen
from tests.model.tiny import tiny
from tests.training.folders import CLASSES, write
from training import cli, evaluate, loader
from training.budget import CountConfig
from training.data import dataset
from training.dynamicvit import command as dynamicvit
from training.engines import EnginesConfig
from training.errors import TrainingError
from training.evaluate import EvaluateConfig
from training.measure import records
from training.parity import ParityConfig
from training.studies.plan import AblationConfig
from training.timing import TimingConfig


@pytest.mark.parametrize(
    "config", [AblationConfig, CountConfig, EnginesConfig, EvaluateConfig, ParityConfig, TimingConfig]
)
def test_records_lie_in_the_output_folder_unless_they_are_to_be_published(config: type[Frozen], tmp_path: Path) -> None:
    parser = cli.parser("measure", "Measure.", config)
    for line, place in (
        ("", "results"),
        (f"--output_dir {tmp_path}", f"{tmp_path}/results"),
        (f"--output_dir {tmp_path} --record", "docs/results"),
    ):
        assert config(**cli.given(config, parser.parse_args(line.split()))).results == Path(place)


@pytest.mark.parametrize("module", [evaluate, loader, dynamicvit])
def test_figures_of_ones_own_pictures_are_never_published(module, tmp_path, monkeypatch):
    data_dir, ckpt = write(tmp_path / "pets", 2), tmp_path / "tiny.safetensors"
    save_checkpoint(ckpt, tiny(num_classes=3), class_names=CLASSES, superclasses=())
    monkeypatch.chdir(tmp_path)
    flags = ["--data_dir", str(data_dir), "--device", "cpu", "--record"]
    with pytest.raises(TrainingError, match=r"expected figures of CIFAR-100, .* found .*pets; leave out --record"):
        module.main(flags if module is loader else [*flags, "--ckpt", str(ckpt)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "tiny.safetensors"], "refused beforehand"


def test_cifar_100_may_be_published(tmp_path):
    assert records.folder(tmp_path, True, dataset.source(None)) == records.RESULTS
