import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from model import load_checkpoint
from training import data, task, train
from training.errors import DivergedError, ResumeError


def weights(config):
    return load_checkpoint(config.checkpoint_path).model.state_dict()


def started(config, model_config):
    """The run that `train.train` would start."""
    train.prepare(config)
    return train.Run(config, task.freqmerge(config, model_config))


def same(left, right):
    return all(torch.equal(left[key], right[key]) for key in left)


def test_a_run_learns_and_leaves_checkpoint_history_and_curves(recipe, tiny_model):
    history = train.train(recipe.replace(epochs=8, augment=False), tiny_model)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.5
    assert json.loads(recipe.history_path.read_text()) == history
    checkpoint = load_checkpoint(recipe.checkpoint_path)
    best = max(history, key=lambda entry: entry["val_top1"])
    assert checkpoint.manifest.scores["val_top1"] == best["val_top1"]
    assert checkpoint.manifest.config == tiny_model
    assert checkpoint.manifest.training["images"] == 360
    with Image.open(recipe.curves_path) as curves:
        assert curves.size[0] > 800
        assert np.asarray(curves.convert("L")).std() > 10


def test_the_plain_vit_trains_with_dropped_patches_averaged_weights_and_mimetic_attention(recipe, tiny_model):
    config = recipe.replace(freqmerge=False, patch_drop=0.4, ema_decay=0.9, init="mimetic", val_fraction=0.0, epochs=6)
    history = train.train(config, tiny_model)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert "val_top1" not in history[-1]
    manifest = load_checkpoint(config.checkpoint_path).manifest
    assert manifest.config.keep_rate == 1.0
    assert manifest.training["epoch"] == 6, "nothing is held out, so the last epoch is kept"


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_numbers(recipe, tiny_model, ema_decay):
    config = recipe.replace(ema_decay=ema_decay)
    whole = train.train(config, tiny_model)
    expected = weights(config)

    broken = config.replace(output_dir=config.output_dir / "killed", save_every_s=1e-9)
    run = started(broken, tiny_model)
    steps = iter(range(13))  # 9 steps an epoch: dies in the second

    def dying(batch, step=run._step):
        if next(steps) == 12:
            raise KeyboardInterrupt
        return step(batch)

    run._step = dying
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert train.train(broken.replace(resume=True), tiny_model) == whole
    assert same(weights(broken), expected)


def test_the_seed_decides_the_run(recipe, tiny_model):
    first = train.train(recipe.replace(epochs=1), tiny_model)
    again = train.train(recipe.replace(epochs=1, output_dir=recipe.output_dir / "again"), tiny_model)
    other = train.train(recipe.replace(epochs=1, output_dir=recipe.output_dir / "other", seed=1), tiny_model)
    assert first == again
    assert first != other


def test_an_unfinished_run_is_not_overwritten_unasked(recipe, tiny_model):
    run = started(recipe, tiny_model)
    run._epoch()
    run._end_epoch()
    with pytest.raises(ResumeError, match=r"unfinished run; go on with --resume, start over with --overwrite"):
        train.train(recipe, tiny_model)
    assert len(train.train(recipe.replace(overwrite=True, epochs=1), tiny_model)) == 1


def test_resuming_with_other_settings_is_refused(recipe, tiny_model):
    train.train(recipe.replace(epochs=1), tiny_model)
    with pytest.raises(ResumeError, match=r"lr: saved 0\.003, given 0\.1"):
        train.train(recipe.replace(epochs=1, lr=0.1, resume=True), tiny_model)


def test_resuming_nothing_is_refused(recipe, tiny_model):
    with pytest.raises(ResumeError, match="found none; start without --resume"):
        train.train(recipe.replace(resume=True), tiny_model)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(recipe, tiny_model):
    train.train(recipe.replace(epochs=1), tiny_model)
    before = recipe.checkpoint_path.read_bytes()
    run = started(recipe.replace(overwrite=True), tiny_model)
    with torch.no_grad():
        run.model.vit.head.bias.fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"loss is nan at epoch 1, step 1"):
        run.go()
    assert recipe.checkpoint_path.read_bytes() == before


def test_the_command_trains_from_flags(data_dir, tmp_path):
    flags = (
        f"--data_dir {data_dir} --output_dir {tmp_path} --epochs 1 --batch_size 64 --image_size 32 --threads 1 "
        "--backbone vit_tiny_patch16_224 --backbone_args patch_size=8 embed_dim=32 depth=2 num_heads=2 "
        "--merge_layers 0 1 --alpha 0.5 --keep_rate 0.8 --hpf_radius 1"
    )
    program = [sys.executable, "-m", "training.train", *flags.split()]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stderr
    config = load_checkpoint(tmp_path / "checkpoints" / "best_model.safetensors").manifest.config
    assert (config.merge_layers, config.alpha, config.keep_rate, config.hpf_radius) == ((0, 1), 0.5, 0.8, 1)


def test_a_wrong_flag_value_ends_with_one_clear_line_and_code_two(tmp_path):
    program = [sys.executable, "-m", "training.train", "--data_dir", str(tmp_path), "--keep_rate", "7"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: keep_rate: expected less than or equal to 1, found 7.0\n"


def test_training_and_validation_images_are_disjoint_and_drawn_by_the_seed(data_dir):
    whole = data.load(data_dir, "train", 32)
    train_part, held_out = data.split_off(whole, 0.25, seed=3)
    assert (len(train_part), len(held_out)) == (300, 100)
    both = torch.cat([train_part.pixels, held_out.pixels]).flatten(1)
    assert len(both.unique(dim=0)) == len(whole.pixels.flatten(1).unique(dim=0)) == 400
    assert torch.equal(held_out.labels, data.split_off(whole, 0.25, seed=3)[1].labels)
