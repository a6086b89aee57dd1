"""Runs that differ in their merging alone: what they share, step by step."""

import pytest
import torch
from timm.layers.drop import DropPath

from model import load_checkpoint
from training import train
from training.run import task

LIVELY = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5, "rand_augment": "rand-m9-n2", "workers": 0}
"""Every augmentation there is."""


@pytest.fixture
def seen(monkeypatch):
    """A function that trains with a merging config and returns every step's pixels, targets and drop-path draws."""

    def watch(config, model_config):
        steps, draws, drop = [], [], DropPath.forward

        def drawing(self, x):
            kept = drop(self, torch.ones_like(x))
            if self.training:
                draws.append(kept[:, 0, 0].clone())
            return x * kept

        train.prepare(config)
        run = train.Run(config, task.freqmerge(config, model_config))
        begun = {key: value.clone() for key, value in run.model.state_dict().items()}
        step = run.shared.forward

        def watched(pixels, targets):
            steps.append((pixels.clone(), targets.clone()))
            return step(pixels, targets)

        with monkeypatch.context() as patch:
            patch.setattr(DropPath, "forward", drawing)
            patch.setattr(run.shared, "forward", watched)
            run.go()
        return begun, steps, draws

    return watch


def test_runs_that_differ_in_their_merging_see_the_same_batches_with_the_same_augmentation_and_drop_path(
    recipe, tiny_model, trained, seen
):
    config = recipe.replace(pretrained=str(trained), drop_path=0.3, epoch_images=80, epochs=2, **LIVELY)
    found = {}
    for name, changes in {
        "tome": {"scoring": "none"},
        "lfgm": {"scoring": "lfgm"},
        "energy": {"scoring": "stream_detail"},
        "fewer": {"scoring": "lfgm", "keep_rate": 0.5, "merge_layers": (0, 1)},
        "plain": {"keep_rate": 1.0},
        "random": {"scoring": "random_merge"},
    }.items():
        found[name] = seen(config.replace(output_dir=recipe.output_dir / name), tiny_model.replace(**changes))
    begun, steps, draws = found["tome"]
    assert len(steps) == 4
    assert len({float(draw.sum()) for draw in draws}) > 1, "some images lose some blocks"
    for name, (other_begun, other_steps, other_draws) in found.items():
        assert all(torch.equal(other_begun[key], begun[key]) for key in begun), name
        for (pixels, targets), (other_pixels, other_targets) in zip(steps, other_steps, strict=True):
            assert torch.equal(other_pixels, pixels), name
            assert torch.equal(other_targets, targets), name
        same = all(torch.equal(other, draw) for other, draw in zip(other_draws, draws, strict=True))
        assert same == (name != "random"), "only a strategy that draws itself moves the draws of the blocks after it"
    weights = {
        name: load_checkpoint(recipe.output_dir / name / "checkpoints" / "best_model.safetensors").model.state_dict()
        for name in ("tome", "lfgm")
    }
    assert any(not torch.equal(weights["tome"][key], weights["lfgm"][key]) for key in begun), "the merging does matter"


def test_a_run_says_how_many_steps_images_and_seconds_it_took_and_goes_on_counting_when_it_is_resumed(
    recipe, tiny_model
):
    config = recipe.replace(epochs=2, epoch_images=100, val_fraction=0.0)
    run = train.Run(config, task.freqmerge(config, tiny_model))
    run._epoch()
    run._end_epoch()
    first = run.progress.seconds
    told = load_checkpoint(config.checkpoint_path).manifest.training
    assert (told["epoch"], told["steps"], told["images_seen"], told["seconds"]) == (1, 2, 80, first)
    assert told["arithmetic"] == "float32, fused attention"
    train.train(config.replace(resume=True), tiny_model)
    told = load_checkpoint(config.checkpoint_path).manifest.training
    assert (told["epoch"], told["steps"], told["images_seen"]) == (2, 4, 160)
    assert told["seconds"] > first > 0


def test_a_run_that_goes_on_with_an_older_state_does_not_claim_to_know_how_long_it_took(recipe, tiny_model):
    config = recipe.replace(epochs=1, epoch_images=100)
    run = train.Run(config, task.freqmerge(config, tiny_model))
    del run.progress.seconds
    run.save_state()
    train.train(config.replace(resume=True), tiny_model)
    assert load_checkpoint(config.checkpoint_path).manifest.training["seconds"] is None
