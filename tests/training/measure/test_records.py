from pathlib import Path

import pytest
import torch

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


def test_a_machine_replaces_its_own_results_and_keeps_those_of_others_of_the_same_checkpoint(tmp_path, monkeypatch):
    def written(device, digest, *values):
        monkeypatch.setattr(records, "machine", lambda _: {"device": device})
        results = [{"digest": digest, "value": value} for value in values]
        records.write_for_machine("speed", "the command", results, torch.device("cpu"), tmp_path)
        entries = records.read("speed", tmp_path)
        return [(entry["machine"]["device"], entry["value"]) for entry in entries], entries

    assert written("A", "old", 1, 2)[0] == [("A", 1), ("A", 2)]
    assert written("B", "new", 3)[0] == [("B", 3)], "what is of another checkpoint goes"
    assert written("A", "new", 4, 5)[0] == [("B", 3), ("A", 4), ("A", 5)]
    both, entries = written("B", "new", 6)
    assert both == [("A", 4), ("A", 5), ("B", 6)]
    assert [[entry["value"] for entry in own] for own in records.by_machine(entries)] == [[4, 5], [6]]
    assert all(entry["command"] == "the command" for entry in entries)
