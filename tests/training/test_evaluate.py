import json

import numpy as np
import pytest
import torch
from PIL import Image

from model import load_checkpoint, save_checkpoint
from model.labels import CLASS_NAMES
from tests.model.tiny import tiny
from tests.support import forked
from training import evaluate
from training.data import dataset
from training.evaluate import EvaluateConfig, report
from training.measure import records


@pytest.fixture
def config(trained, data_dir, tmp_path):
    return EvaluateConfig(ckpt=trained, data_dir=data_dir, output_dir=tmp_path, device="cpu", batch_size=33)


def test_the_record_holds_what_the_checkpoint_scores_and_costs(config, trained, data_dir):
    result = evaluate.evaluate(config, {}, "the command")
    images = dataset.source(data_dir).load("test", 32)
    loaded = load_checkpoint(trained)
    mean, std = (
        torch.tensor(part)[:, None, None] for part in (loaded.manifest.preprocess.mean, loaded.manifest.preprocess.std)
    )
    with torch.no_grad():
        logits = loaded.model((images.pixels / 255 - mean) / std).logits
    assert result["top1"] == pytest.approx((logits.argmax(1) == images.labels).double().mean().item())
    assert result["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, images.labels).item(), abs=1e-4)
    assert result["top5"] >= result["top1"]
    assert 0 <= result["calibration_error"] <= 1
    assert result["schedule"] == (16, 11, 11)
    assert result["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    (record,) = records.read("evaluate", config.results)
    assert (record["top1"], record["digest"]) == (result["top1"], loaded.manifest.digest)
    assert (record["command"], record["images"], record["seed"]) == ("the command", 100, 0)
    assert record["machine"]["torch"] == torch.__version__
    text = report(result)
    assert f"{result['top1']:.2%}" in text
    assert "16 → 11" in text


def test_no_freqmerge_is_the_plain_vit_and_costs_more(config):
    merged = evaluate.evaluate(config, {}, "merged")
    plain = evaluate.evaluate(config.replace(freqmerge=False), {}, "plain")
    assert plain["schedule"] == (16, 16, 16)
    assert plain["macs"] > 1.1 * merged["macs"]
    assert plain["parameters"] == merged["parameters"]
    assert {record["command"] for record in records.read("evaluate", config.results)} == {"merged", "plain"}


def test_measuring_again_replaces_the_record_of_the_same_config(config):
    for command in ("first", "second"):
        evaluate.evaluate(config, {"keep_rate": 0.6}, command)
    assert [record["command"] for record in records.read("evaluate", config.results)] == ["second"]


def test_the_benchmark_times_every_batch_size_beside_the_plain_vit(config):
    result = evaluate.evaluate(config.replace(benchmark=True, batch_sizes=(1, 4), repeats=3), {}, "the command")
    assert [row["batch_size"] for row in result["throughput"]] == [1, 4]
    for row in result["throughput"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["images_per_s"] <= high
        assert row["plain_images_per_s"] > 0
    assert report(result).count("times the plain ViT") == 2


def test_either_score_is_drawn_into_a_file_of_its_own(config):
    for score in ("lfgm", "energy"):
        evaluate.evaluate(config.replace(visualize=True, pictured=("bicycle",), score=score), {}, "the command")
    paths = [config.output_dir / "visualizations" / f"{score}_heatmaps.png" for score in ("lfgm", "energy")]
    lfgm, energy = (np.asarray(Image.open(path).convert("RGB")) for path in paths)
    assert lfgm.shape != energy.shape or (lfgm != energy).any()


def test_heatmaps_have_three_rows_of_the_chosen_classes(config):
    evaluate.evaluate(config.replace(visualize=True, pictured=("bicycle", "fox")), {}, "the command")
    with Image.open(config.heatmaps_path) as picture:
        wide = picture.size[0]
        assert np.asarray(picture.convert("L")).std() > 10
    evaluate.evaluate(config.replace(visualize=True, pictured=("bicycle", "fox", "rose", "bed")), {}, "the command")
    with Image.open(config.heatmaps_path) as picture:
        assert picture.size[0] > 1.3 * wide


def test_the_confusion_matrix_is_large_enough_to_read_a_hundred_names(config):
    result = evaluate.evaluate(config.replace(confusion=True), {}, "the command")
    with Image.open(config.confusion_path) as picture:
        assert min(picture.size) >= 2000
    shown = {pair["true"] for pair in result["worst_pairs"]}
    assert shown <= set(CLASS_NAMES)


def test_the_seeds_command_runs_and_leaves_its_files(trained, data_dir, tmp_path):
    flags = (
        f"--ckpt {trained} --data_dir {data_dir} --output_dir {tmp_path} --benchmark --visualize "
        "--confusion --no_freqmerge --batch_sizes 1 --repeats 3 --threads 1"
    )
    done = _run("training.evaluate", flags)
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout
    for name in ("lfgm_heatmaps.png", "confusion_matrix.png"):
        assert (tmp_path / "visualizations" / name).stat().st_size > 10_000
    assert json.loads((tmp_path / "results" / "evaluate.jsonl").read_text())["config"]["keep_rate"] == 1.0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--ckpt nowhere.safetensors", "expected a checkpoint file (.safetensors), found nothing"),
        ("--ckpt {trained} --merge_layers 7", "merge_layers: expected block indices 0..2"),
        ("--ckpt {trained} --data_dir nowhere", "data_dir: expected a folder"),
        ("--ckpt {trained} --pictured deer", "pictured: expected classes of CIFAR-100, without deer"),
        ("--ckpt {pth}", "a pickled file, which is never opened"),
        ("--ckpt {broken}", "found NaN or infinity for 100 of 100 images"),
        ("--ckpt {two}", "expected a model of CIFAR-100's 100 classes, found 2 classes (a, b, …)"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_one_clear_line_and_code_two(
    flags, said, trained, data_dir, tmp_path, capsys
):
    from training import cli

    pth = tmp_path / "seed.pth"
    torch.save({"weight": torch.ones(1)}, pth)
    model = load_checkpoint(trained).model
    model.vit.head.bias.fill_(float("nan"))
    broken, two = tmp_path / "broken.safetensors", tmp_path / "two.safetensors"
    save_checkpoint(broken, model)
    save_checkpoint(two, tiny(num_classes=2), class_names=("a", "b"), superclasses=())
    line = flags.format(trained=trained, pth=pth, broken=broken, two=two)
    words = [*("--data_dir", str(data_dir), "--output_dir", str(tmp_path)), *line.split()]
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluate.main(words))
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert said in errors


def _run(module, flags):
    return forked.run("-m", module, *flags.split())
