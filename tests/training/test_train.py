import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from model import load_checkpoint
from tests.support import forked
from training import train
from training.config import TrainConfig
from training.data import dataset
from training.data.images import split_off
from training.errors import DivergedError, ResumeError
from training.run import progress, task


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
    with pytest.raises(ResumeError, match=r"unfinished run \(1 of 3 epochs done, .*go on with --resume, start over"):
        train.train(recipe, tiny_model)
    assert len(train.train(recipe.replace(overwrite=True, epochs=1), tiny_model)) == 1


def test_a_finished_run_is_not_overwritten_unasked(recipe, tiny_model):
    config = recipe.replace(epochs=1)
    train.train(config, tiny_model)
    before = config.checkpoint_path.read_bytes()
    expected = r"a finished run \(1 of 1 epochs done, started as `python -m training.train.*`\); replace it"
    with pytest.raises(ResumeError, match=expected):
        train.train(config.replace(seed=1), tiny_model)
    assert config.checkpoint_path.read_bytes() == before


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ("best_model.safetensors", "checkpoints/best_model.safetensors, the checkpoint of some other run; replace it"),
        ("last_state.safetensors", "the damaged state of a run; replace it with --overwrite or choose another"),
    ],
)
def test_what_another_run_left_is_not_overwritten_unasked(recipe, tiny_model, left, said):
    recipe.checkpoint_path.parent.mkdir(parents=True)
    (recipe.checkpoint_path.parent / left).write_bytes(b"something")
    with pytest.raises(ResumeError, match=said):
        train.train(recipe, tiny_model)


@pytest.mark.parametrize(
    ("save_every_s", "said"),
    [
        (
            1e-9,
            r"last_state\.safetensors holds 0 epochs and 3 steps; the same command with --resume goes on",
        ),
        (60.0, "nothing of this run is saved yet; start it again"),
    ],
)
def test_an_interrupted_run_says_whether_it_can_be_resumed(recipe, tiny_model, monkeypatch, save_every_s, said):
    usual = train.Run._step

    def interrupted(run, batch):
        if run.progress.step == 3:
            raise KeyboardInterrupt
        return usual(run, batch)

    monkeypatch.setattr(train.Run, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match=said):
        train.train(recipe.replace(save_every_s=save_every_s), tiny_model)


def test_the_last_lines_name_the_best_epoch_its_checkpoint_and_what_to_do_with_it(tmp_path):
    config = TrainConfig(output_dir=tmp_path, data_dir="data", epochs=3)
    path = tmp_path / "checkpoints" / "best_model.safetensors"
    scored = [{"epoch": n, "train_top1": 0.1 * n, "val_top1": top1} for n, top1 in ((1, 0.1), (2, 0.255), (3, 0.2))]
    assert progress.ending(config, scored) == (
        "best epoch 2 of 3: validation top-1 25.50%\n"
        f"written: {path}\n"
        f"evaluate: python -m training.evaluate --ckpt {path} --data_dir data\n"
        f"serve: FREQMERGE_CHECKPOINT={path} python -m service"
    )
    plain = [{"epoch": n, "train_top1": 0.1 * n} for n in (1, 2, 3)]
    assert progress.ending(config, plain).startswith("last epoch 3 of 3: training top-1 30.00%\n")


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
        "--backbone vit_tiny_patch16_224 --backbone_args patch_size=8 embed_dim=32 depth=2 num_heads=2 --no_amp "
        "--merge_layers 0 1 --alpha 0.5 --keep_rate 0.8 --hpf_radius 1"
    )
    done = forked.run("-m", "training.train", *flags.split())
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stderr
    assert (
        "cpu (1 thread), float32, fused attention: 0.0 M parameters, 360 training and 40 validation images, "
        f"1 epoch of 5 steps of 64 images; writes to {tmp_path}\n"
    ) in done.stderr
    assert re.search(r"epoch 1/1: training loss .*; validation loss \S+, top-1 \S+%, top-5 \S+%; learning", done.stderr)
    assert "best epoch 1 of 1: validation top-1" in done.stdout
    config = load_checkpoint(tmp_path / "checkpoints" / "best_model.safetensors").manifest.config
    assert (config.merge_layers, config.alpha, config.keep_rate, config.hpf_radius) == ((0, 1), 0.5, 0.8, 1)


def test_a_wrong_flag_value_ends_with_one_clear_line_and_code_two(tmp_path):
    done = forked.run("-m", "training.train", "--data_dir", tmp_path, "--keep_rate", 7)
    assert done.returncode == 2
    assert done.stderr == "error: keep_rate: expected 0.5 to 1, found 7.0\n"


def test_training_and_validation_images_are_disjoint_and_drawn_by_the_seed(data_dir):
    whole = dataset.source(data_dir).load("train", 32)
    train_part, held_out = split_off(whole, 0.25, seed=3)
    assert (len(train_part), len(held_out)) == (300, 100)
    both = torch.cat([train_part.pixels, held_out.pixels]).flatten(1)
    assert len(both.unique(dim=0)) == len(whole.pixels.flatten(1).unique(dim=0)) == 400
    assert torch.equal(held_out.labels, split_off(whole, 0.25, seed=3)[1].labels)
