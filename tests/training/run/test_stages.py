import json

import pytest
import torch
from safetensors.torch import save_file

from model import build, load_checkpoint
from training import train
from training.errors import WeightsError
from training.run import task
from training.run.pretrained import ORIGIN_KEY, filled, origin, sha256

CONVERTED = {"command": "python -m training.convert …", "started_from": {"file": "a.onnx", "sha256": "0" * 64}}


@pytest.fixture
def start(tiny_model, tmp_path):
    """Plain timm weights that say what they were made of."""
    torch.manual_seed(5)
    state = {key: value.contiguous() for key, value in build(tiny_model).vit.state_dict().items()}
    save_file(state, tmp_path / "start.safetensors", {ORIGIN_KEY: json.dumps(CONVERTED)})
    return tmp_path / "start.safetensors"


@pytest.fixture
def small(recipe):
    """The first stage: small pictures, nothing merges."""
    return recipe.replace(output_dir=recipe.output_dir / "small", freqmerge=False, epochs=6, augment=False)


def test_a_stage_on_a_larger_grid_starts_from_the_smaller_ones_checkpoint_head_included(recipe, small, tiny_model):
    learned = train.train(small, tiny_model)
    larger = tiny_model.replace(image_size=48, keep_rate=0.7)
    known = load_checkpoint(small.checkpoint_path).model.vit
    begun = filled(build(larger), small.checkpoint_path).vit
    assert (tuple(known.patch_embed.grid_size), tuple(begun.patch_embed.grid_size)) == ((4, 4), (6, 6))
    for name, tensor in known.state_dict().items():
        assert name == "pos_embed" or torch.equal(begun.state_dict()[name], tensor)

    config = recipe.replace(pretrained=str(small.checkpoint_path), epochs=1, augment=False, lr=1e-4)
    history = train.train(config, larger)
    assert history[0]["train_loss"] < learned[0]["train_loss"] - 0.5
    made = load_checkpoint(config.checkpoint_path)
    assert (made.manifest.config.image_size, made.model.schedule) == (48, (36, 25, 25))


def test_a_checkpoint_tells_every_stage_before_it_down_to_the_first_file(recipe, small, start, tiny_model):
    first = small.replace(pretrained=str(start), epochs=1)
    train.train(first, tiny_model)
    second = recipe.replace(pretrained=str(first.checkpoint_path), epochs=1)
    train.train(second, tiny_model.replace(image_size=48))
    told = load_checkpoint(second.checkpoint_path).manifest.training["started_from"]
    before = load_checkpoint(first.checkpoint_path).manifest
    assert (told["file"], told["sha256"]) == ("best_model.safetensors", sha256(first.checkpoint_path))
    assert (told["digest"], told["training"]) == (before.digest, before.training)
    assert told["training"]["started_from"] == {"file": start.name, "sha256": sha256(start), **CONVERTED}


def test_a_resumed_run_remembers_what_it_started_from_when_that_file_is_gone(small, start, tiny_model):
    config = small.replace(pretrained=str(start), epochs=1)
    train.Run(config, task.freqmerge(config, tiny_model)).save_state()
    expected = origin(str(start), "any")
    start.unlink()
    train.train(config.replace(resume=True), tiny_model)
    assert load_checkpoint(config.checkpoint_path).manifest.training["started_from"] == expected


def test_a_run_from_fresh_weights_started_from_nothing(small, tiny_model):
    train.train(small.replace(epochs=1), tiny_model)
    assert "started_from" not in load_checkpoint(small.checkpoint_path).manifest.training


def test_weights_of_the_hub_and_files_without_a_record_are_told_by_what_is_known(start):
    assert origin("hub", "vit_small_patch16_224") == {"hub": "vit_small_patch16_224"}
    save_file({"a": torch.zeros(1)}, start)
    assert origin(str(start), "any") == {"file": start.name, "sha256": sha256(start)}


@pytest.mark.parametrize("record", ["{", "3"])
def test_a_damaged_record_of_where_weights_come_from_is_refused(start, record):
    save_file({"a": torch.zeros(1)}, start, {ORIGIN_KEY: record})
    with pytest.raises(WeightsError, match=r"expected a record of where the weights come from .*, found a damaged one"):
        origin(str(start), "any")


def test_with_one_val_seed_stages_hold_out_the_same_images_and_still_draw_their_own_order(small, tiny_model):
    def begun(**fields):
        config = small.replace(**fields)
        return train.Run(config, task.freqmerge(config, tiny_model))

    first, second, other = begun(seed=0), begun(seed=1, val_seed=0), begun(seed=1)
    assert torch.equal(first.held_out.pixels, second.held_out.pixels)
    assert not torch.equal(first.held_out.pixels, other.held_out.pixels)
    orders = [next(run.loader.epoch(0)).pixels for run in (first, second)]
    assert not torch.equal(*orders)
