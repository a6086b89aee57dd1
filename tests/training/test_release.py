import json

import pytest
import torch

from model import load_checkpoint, macs
from model.checkpoint import read_manifest
from training import tables, timing, train
from training.data import dataset
from training.errors import TrainingError
from training.measure import records
from training.measure.scores import score
from training.release import ReleaseConfig, release, report
from training.timing import TimingConfig


def test_a_release_carries_the_scores_of_the_whole_test_set_with_and_without_merging(recipe, tiny_model, data_dir):
    train.train(recipe.replace(freqmerge=False, epochs=6, augment=False), tiny_model)
    out = recipe.output_dir / "released.safetensors"
    made_from = {"package": "tiny 1.0", "licences": "MIT"}
    config = ReleaseConfig(
        ckpt=recipe.checkpoint_path,
        out=out,
        name="tiny",
        data_dir=data_dir,
        half=True,
        made_from=made_from,
        batch_size=30,
    )
    manifest = release(config, {"keep_rate": 0.6}, "the command")
    assert json.loads(out.with_suffix(".json").read_text()) == manifest.model_dump(mode="json")
    assert (manifest.name, manifest.config.keep_rate, manifest.training["test_images"]) == ("tiny", 0.6, 100)
    assert manifest.training["made_from"] == made_from
    assert f"without merging top-1 {manifest.scores['plain_top1']:.2%}, top-5 " in report(manifest)
    images = dataset.source(data_dir).load("test", 32)
    for keep_rate, prefix in ((0.6, ""), (1.0, "plain_")):
        model = load_checkpoint(out, keep_rate=keep_rate).model
        with torch.no_grad():
            normalised = (images.pixels / 255 - torch.tensor(manifest.preprocess.mean)[:, None, None]) / torch.tensor(
                manifest.preprocess.std
            )[:, None, None]
            right = model(normalised).logits.argmax(1) == images.labels
        assert manifest.scores[f"{prefix}top1"] == pytest.approx(right.float().mean().item())


def test_a_release_divides_the_logits_by_the_temperature_of_the_held_out_images(recipe, tiny_model, data_dir):
    train.train(recipe.replace(freqmerge=False, epochs=6, augment=False, val_fraction=0.3), tiny_model)
    config = ReleaseConfig(
        ckpt=recipe.checkpoint_path, out=recipe.output_dir / "released.safetensors", name="tiny", data_dir=data_dir
    )
    told = release(config, {"keep_rate": 0.6}, "the command")
    calibration = told.training["calibration"]
    assert (calibration["images"], calibration["bins"], calibration["folded_into"]) == (120, 15, "head")
    assert calibration["loss"][1] <= calibration["loss"][0]
    raw, calibrated = (load_checkpoint(path, keep_rate=0.6).model.vit.head for path in (config.ckpt, config.out))
    assert calibration["temperature"] != pytest.approx(1, abs=1e-3)
    assert torch.allclose(calibrated.weight * calibration["temperature"], raw.weight, atol=1e-6)
    assert torch.allclose(calibrated.bias * calibration["temperature"], raw.bias, atol=1e-6)
    assert f"({told.scores['uncalibrated_error']:.2%} uncalibrated)" in report(told)
    assert f"temperature     {calibration['temperature']:.3f} (120 held-out training images)" in report(told)
    certainty = calibration["certainty"]
    assert told.certain_from == read_manifest(config.out).certain_from == certainty["certain_from"]
    assert certainty["right_of_others"] is None or certainty["right_of_others"] <= 0.5
    assert f"certain from    {told.certain_from:.4f} ({certainty['certain']:.1%} of these images; right are" in report(
        told
    )

    images = dataset.source(data_dir).load("test", 32)
    before = release(config.replace(calibrate=False), {"keep_rate": 0.6}, "the command")
    assert before.training["calibration"] == {"temperature": 1.0, "why": "not asked for"}
    assert before.certain_from is None
    assert "certain from" not in report(before)
    assert before.scores["calibration_error"] == pytest.approx(told.scores["uncalibrated_error"], abs=1e-5)
    assert (before.scores["top1"], len(images)) == (told.scores["top1"], 100)


def test_a_release_of_too_few_held_out_images_keeps_its_confidence_and_says_so(trained, data_dir, tmp_path):
    config = ReleaseConfig(ckpt=trained, out=tmp_path / "released.safetensors", name="tiny", data_dir=data_dir)
    told = release(config, {}, "the command")
    assert "1.000 (0 training images are known to be held out, 100 are needed)" in report(told)


def test_scores_count_hits_and_average_the_loss(data_dir):
    images = dataset.source(data_dir).load("test", 32)

    class Constant(torch.nn.Module):
        """Says class 3 first and 0..4 after it, whatever it sees."""

        def forward(self, pixels):
            logits = torch.zeros(len(pixels), 100)
            logits[:, :5] = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0])
            return type("Answer", (), {"logits": logits})

    found = score(Constant(), images, 33, torch.device("cpu"))
    assert (found.top1, found.top5) == (0.01, 0.05)
    every = torch.zeros(100)
    every[:5] = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0])
    assert found.loss == pytest.approx(float(-every.log_softmax(0).mean()), abs=1e-5)


def test_the_plain_vit_small_counts_4_60_gmacs_and_freqmerge_2_98():
    from model import ModelConfig, build

    model = build(ModelConfig())
    assert macs.count_macs(model.vit, 224) == pytest.approx(4.60e9, rel=0.005)
    assert macs.count_macs(model, 224) == pytest.approx(2.98e9, rel=0.01)
    assert macs.count_parameters(model) == macs.count_parameters(model.vit) == 21_704_164


def test_timing_writes_records_that_the_readme_table_is_made_from(tiny_model, tmp_path):
    config = TimingConfig(batch_sizes=(1, 2), repeats=3, warm_up=1, device="cpu")
    results = timing.measure(config, tiny_model)
    records.write("timing", "the command", results, torch.device("cpu"), tmp_path)
    read = records.read("timing", tmp_path)
    assert [entry["images_per_s"] for entry in read] == [entry["images_per_s"] for entry in results]
    assert {entry["command"] for entry in read} == {"the command"}
    assert all(entry["machine"]["torch"] and entry["commit"] for entry in read)
    page = "before\n<!-- table: timing -->\nold\n<!-- end -->\nafter\n"
    filled = tables.fill(page, tmp_path)
    assert "old" not in filled
    assert filled.startswith("before\n<!-- table: timing -->\n| model |")
    assert f"| plain timm ViT | 16 | {read[0]['macs'] / 1e9:.2f} |" in filled
    assert tables.fill(filled, tmp_path) == filled


def test_a_table_without_records_says_what_to_run(tmp_path):
    with pytest.raises(TrainingError, match="found no file; run the command that measures them"):
        records.read("timing", tmp_path)
