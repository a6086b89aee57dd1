import re

import pytest
import torch

from model.checkpoint import load_checkpoint, read_manifest, save_checkpoint
from model.errors import ConfigError
from tests.model.tiny import tiny
from training import average
from training.average import mean
from training.data.held_out import unseen
from training.errors import WeightsError
from training.tables import commands


def saved(path, seed, *, training=None, **config):
    """A tiny checkpoint with weights of its own."""
    model = tiny(**config)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws))
    save_checkpoint(path, model, name=f"model {seed}", training=training)
    return path


def averaged(tmp_path, *ckpts):
    out = tmp_path / "mean.safetensors"
    average.main(["--ckpts", *map(str, ckpts), "--out", str(out)])
    return out


def test_every_weight_is_the_mean_and_the_rest_is_the_first_ones(tmp_path):
    paths = [saved(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 3)]
    out = load_checkpoint(averaged(tmp_path, *paths))
    states = [load_checkpoint(path).model.state_dict() for path in paths]
    assert not torch.equal(states[0]["vit.pos_embed"], states[1]["vit.pos_embed"])
    for name, tensor in out.model.state_dict().items():
        slow = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(tensor.double(), slow, rtol=0, atol=1e-6)
    assert out.manifest.name == "model 1"
    assert out.manifest.config == read_manifest(paths[0]).config


def test_whole_numbers_are_taken_from_the_first_and_half_precision_is_summed_in_full():
    assert mean([torch.tensor([3]), torch.tensor([5])]).tolist() == [3]
    halves = [torch.tensor([60_000.0], dtype=torch.float16)] * 3
    assert mean(halves).tolist() == [60_000.0]
    assert mean(halves).dtype == torch.float16


def test_the_manifest_keeps_what_every_one_was_made_of_and_what_none_of_them_saw(tmp_path):
    first = {"command": "train", "data": "pictures", "images": 40, "config": {"val_fraction": 0.2, "seed": 1}}
    start = {"file": "1.safetensors", "sha256": "0" * 64, "training": first}
    second = {**first, "command": "train more", "started_from": start}
    paths = [
        saved(tmp_path / f"{seed}.safetensors", seed, training=training)
        for seed, training in enumerate((first, second), 1)
    ]
    told = read_manifest(averaged(tmp_path, *paths)).training
    assert (told["data"], told["images"]) == ("pictures", 40)
    assert [member["training"]["command"] for member in told["averaged"]] == ["train", "train more"]
    assert [member["digest"] for member in told["averaged"]] == [read_manifest(path).digest for path in paths]
    assert all(re.fullmatch("[0-9a-f]{64}", member["sha256"]) for member in told["averaged"])
    steps = commands(told)
    assert steps[:2] == ["train", "train more"]
    assert steps[2].startswith("python -m training.average --ckpts ")
    assert len(steps) == 3
    other = {**first, "config": {"val_fraction": 0.2, "seed": 2}}
    assert unseen({**told, "averaged": [{"training": first}, {"training": other}]}, lambda: None) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_classes": 7}, "model config"), ({"alpha": 0.1}, "model config")],
)
def test_checkpoints_of_other_models_are_refused_by_name_and_nothing_is_written(tmp_path, changes, words):
    first = saved(tmp_path / "1.safetensors", 1)
    model = tiny(**changes)
    names = [f"class {number}" for number in range(model.config.num_classes)]
    other = tmp_path / "2.safetensors"
    save_checkpoint(other, model, class_names=names, superclasses=())
    with pytest.raises(WeightsError, match=f"expected the {words} of {first} .*found .* in {other}"):
        averaged(tmp_path, first, other)
    assert not (tmp_path / "mean.safetensors").exists()


def test_the_same_weights_twice_are_refused(tmp_path):
    first = saved(tmp_path / "1.safetensors", 1)
    again = saved(tmp_path / "2.safetensors", 1)
    with pytest.raises(WeightsError, match=f"found those of {first} again in {again}"):
        averaged(tmp_path, first, again)


def test_one_checkpoint_has_no_mean(tmp_path):
    with pytest.raises(ConfigError, match="ckpts: expected .* at least 2"):
        averaged(tmp_path, saved(tmp_path / "1.safetensors", 1))
