import re

import pytest
import torch

from model import ModelConfig
from model.checkpoint import read_manifest
from model.manifest import default_checkpoint_path
from tests.support.paths import ROOT
from training import tables
from training.measure import records
from training.studies import reports


@pytest.mark.parametrize("page", tables.pages(ROOT), ids=lambda page: page.name)
def test_the_tables_of_every_page_are_what_its_records_give(page):
    text = page.read_text(encoding="utf-8")
    assert tables.fill(text, ROOT / records.RESULTS) == text, "python -m training.tables writes them again"


def test_every_table_that_a_page_asks_for_exists_and_none_is_forgotten():
    asked = {name for page in tables.pages(ROOT) for _, name, _ in tables.MARKED.findall(page.read_text("utf-8"))}
    studies = {"study_alpha", "study_scoring"}  # docs/studies/claims.md shows these two
    assert asked | studies == set(tables.TABLES)


def test_a_study_without_records_says_that_it_was_not_run(tmp_path):
    assert tables.fill("<!-- table: study_radius -->\n<!-- end -->\n", tmp_path) == (
        "<!-- table: study_radius -->\nnot run\n<!-- end -->\n"
    )


def test_the_released_table_has_tome_where_it_was_measured_on_the_very_weights_that_ship(tmp_path):
    manifest = read_manifest(default_checkpoint_path())
    gain = {"difference": 0.0125, "low": 0.01, "high": 0.015, "p": 0.03}
    for digest, measured in (("0" * 64, False), (manifest.digest, True)):
        entry = {"digest": digest, "seeds": 1}
        rows = [
            {**entry, "row": "none", "top1": 0.125, "against": {}},
            {**entry, "row": "lfgm", "top1": 0.1375, "against": {"none": gain}},
        ]
        records.write("ablation_scoring", "made up", rows, torch.device("cpu"), tmp_path)
        page = tables.released(tmp_path)
        assert ("| ToMe (α = 0) |" in page, "| 12.50 |" in page, "+1.25 [+1.00, +1.50]" in page) == (measured,) * 3
        assert f"| {100 * manifest.scores['plain_top1']:.2f} |" in page


def test_the_page_of_the_checkpoint_has_every_command_that_led_to_it_the_first_one_first(tmp_path):
    first = {"file": "first.safetensors", "command": "convert it", "started_from": {"file": "first.onnx"}}
    second = {"file": "second.safetensors", "training": {"command": "train it", "started_from": first}}
    assert tables.commands({"command": "train it more", "started_from": second}) == [
        "convert it",
        "train it",
        "train it more",
    ]
    assert tables.commands({"command": "train it", "started_from": {"file": "timm's"}}) == ["train it"]
    told = read_manifest(default_checkpoint_path()).training
    numbered = re.findall(r"^(\d+)\. `(.*)`$", tables.checkpoint(tmp_path), re.MULTILINE)
    steps = [*tables.commands(told), told["released_by"]]
    assert numbered == [(str(number), step) for number, step in enumerate(steps, 1)]


def test_a_trial_on_fewer_images_never_replaces_a_result(tmp_path):
    device = torch.device("cpu")
    full = [{"row": "plain", "images": 100}, {"row": "lfgm", "images": 100}]
    first = records.write("ablation_alpha", "full", full, device, tmp_path)
    trial = records.write("ablation_alpha", "trial", [{"row": "plain", "images": 99}], device, tmp_path)
    again = records.write("ablation_alpha", "again", full, device, tmp_path)
    assert trial.parent.name == "trials"
    assert first == again
    assert [entry["command"] for entry in records.read("ablation_alpha", tmp_path)] == ["again", "again"]
    assert records.read("ablation_alpha", trial.parent)[0]["command"] == "trial"


def test_asking_for_help_rewrites_nothing(monkeypatch, tmp_path, capsys):
    (tmp_path / "README.md").write_text("<!-- table: study_radius -->\n<!-- end -->\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        tables.main(["--help"])
    assert "docs/results" in capsys.readouterr().out
    assert "not run" not in (tmp_path / "README.md").read_text()
    tables.main([])
    assert "not run" in (tmp_path / "README.md").read_text()


def test_engines_are_compared_in_one_table_per_checkpoint_which_it_names(tmp_path):
    device = torch.device("cpu")
    entry = {"keep_rate": 0.7, "images": 10, "agreement": 1.0, "goal": 0.995, "reference_top1": 0.5}
    entry |= {"score_max_difference": 0.0, "same_source_map": 1.0}
    results = [
        {**entry, "checkpoint": name, "digest": name, "engine": engine, "top1": top1}
        for name, engine, top1 in (("one", "eager:bf16", 0.25), ("two", "eager:bf16", 0.5), ("one", "eager:fp16", 0.75))
    ]
    records.write("parity", "measure", results, device, tmp_path)
    first, second = tables.parity(tmp_path).split("\n| engine ")
    assert ("| 25.00 |" in first, "| 75.00 |" in first, "checkpoint `one`, 10 test images" in first) == (True,) * 3
    assert ("| 50.00 |" in second, "checkpoint `two`, 10 test images" in second) == (True, True)
    assert "two" not in first
    assert "one" not in second


def test_the_table_of_methods_says_nothing_of_runs_from_another_checkpoint(tmp_path):
    device = torch.device("cpu")
    measured = {"top1": 0.5, "macs": 10**9, "parameters": 10**6, "images": 10_000, "precision": "float32"}
    measured |= {"config": ModelConfig().model_dump(mode="json"), "standard_error": 0.005, "against": {}}
    one = {**measured, "row": "lfgm", "label": "FreqMerge", "checkpoint": "one", "digest": "d" * 64, "budget": None}
    records.write("ablation_scoring", "score", [one], device, tmp_path)
    for digest, told in (("d" * 64, True), ("e" * 64, False)):
        records.write("ablation_alpha", "alpha", [{**one, "row": "alpha=0.5", "digest": digest}], device, tmp_path)
        dynamic = {**measured, "rho": 0.7, "epochs": 12, "start": {"digest": digest}}
        records.write("dynamicvit", "train dynamicvit", [dynamic], device, tmp_path)
        page = tables.methods(tmp_path)
        assert ("costs the same 1 GMACs" in page, "Also `train dynamicvit`" in page) == (told, told)
        assert ("ρ = 0.7, 12 epochs" in page, "checkpoint `one`" in page) == (told, True)


def test_every_row_of_the_methods_says_what_was_measured():
    measured = {"top1": 0.5, "macs": 10**9, "parameters": 10**6, "digest": "d"}
    changes = {
        "plain": {"keep_rate": 1.0},
        "none": {"scoring": "none"},
        "lfgm": {},
        "tome_best": {"scoring": "none", "merge_layers": (0, 1), "merge_counts": (13, 12)},
    }
    entries = [
        {**measured, "row": row, "config": ModelConfig(**change).model_dump(mode="json")}
        for row, change in changes.items()
    ]
    dynamic = {**measured, "rho": 0.7, "epochs": 12, "start": {"digest": "d"}}
    lines = reports.methods(entries, [dynamic]).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == [
        "nothing merges",
        "ρ = 0.7, 12 epochs",
        "keep rate 0.7, blocks 4 6 8 10",
        "keep rate 0.7, α 0.7, blocks 4 6 8 10",
        "12 to 13 tokens in every block",
    ]


def test_the_row_of_dynamicvit_is_the_longest_run_from_the_measured_checkpoint_and_says_how_long_it_was(tmp_path):
    measured = {"top1": 0.5, "macs": 10**9, "parameters": 10**6, "images": 10_000, "precision": "float32"}
    measured |= {"config": ModelConfig().model_dump(mode="json"), "standard_error": 0.005, "against": {}}
    one = {**measured, "row": "lfgm", "label": "FreqMerge", "checkpoint": "one", "digest": "d", "budget": None}
    records.write("ablation_scoring", "score", [one], torch.device("cpu"), tmp_path)
    assert "DynamicViT has to be trained; there is no run from this checkpoint yet: not run." in tables.methods(
        tmp_path
    )
    short = {**measured, "rho": 0.7, "start": {"digest": "d"}, "epoch": 1, "epochs": 1, "epoch_images": 24_000}
    short |= {"steps": 375, "images_seen": 24_000, "seconds": 1800.0}
    long = {**short, "epoch": 4, "epochs": 5, "steps": 1875, "images_seen": 120_000, "seconds": 10_440.0}
    records.write("dynamicvit", "train dynamicvit", [short, long], torch.device("cpu"), tmp_path)
    page = tables.methods(tmp_path)
    assert "| DynamicViT (r=0.5) | ρ = 0.7, 5 epochs of 24,000 images, 2.9 h |" in page
    assert (
        "- DynamicViT was trained for 5 epochs of 24,000 images, 2.9 h (1,875 steps, 120,000 images); the weights are "
        "those of epoch 4; its authors train for 30 epochs of ImageNet." in page
    )


def test_parity_says_what_each_precision_costs_and_whether_it_is_taken_for_that(tmp_path):
    common = {"checkpoint": "tiny", "digest": "d", "images": 10_000, "reference_top1": 0.88, "bound": 0.002}
    results = [
        {**common, "precision": "int8", "top1": 0.881, "difference": 0.001, "low": -0.001, "high": 0.003},
        {**common, "precision": "bf16", "top1": 0.877, "difference": -0.003, "low": -0.005, "high": -0.001},
    ]
    records.write("precision", "measure", results, torch.device("cpu"), tmp_path)
    page = tables.parity(tmp_path)
    assert "| openvino, int8 | 88.10 | 88.00 | +0.10 [-0.10, +0.30] | yes |\n" in page
    assert "| openvino, bf16 | 87.70 | 88.00 | -0.30 [-0.50, -0.10] | no |\n" in page
    assert "`measure`, checkpoint `tiny`, 10,000 test images, paired" in page


@pytest.mark.parametrize(("seconds", "said"), [(23.4, "23 s"), (102.0, "2 min"), (5940.0, "99 min"), (1.08e4, "3.0 h")])
def test_a_duration_is_said_in_the_unit_that_a_reader_would_use(seconds, said):
    assert reports.duration(seconds) == said
