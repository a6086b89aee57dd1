import json
import re

import pytest
import torch

from model import load_checkpoint, save_checkpoint
from model.checkpoint import read_manifest
from model.errors import ConfigError
from training import compare, tables, train
from training.compare import CompareConfig, compare_checkpoints
from training.data import dataset
from training.measure import paired, records
from training.measure.fitting import cost
from training.run.pretrained import sha256
from training.studies import trained as study


@pytest.fixture(scope="module")
def runs(trained, data_dir, tmp_path_factory):
    """Short runs from the same weights: with ToMe, with LFGM, without merging; and LFGM with another recipe."""
    folder, manifest = tmp_path_factory.mktemp("runs"), read_manifest(trained)
    common = train.TrainConfig(
        data_dir=data_dir, epochs=1, batch_size=40, lr=1e-3, device="cpu", pretrained=str(trained), drop_path=0.1
    )
    found = {}
    for name, changes, merging in (
        ("tome", {}, {"scoring": "none"}),
        ("lfgm", {}, {"scoring": "lfgm"}),
        ("plain", {"freqmerge": False}, {}),
        ("other", {"lr": 2e-3, "seed": 1}, {"scoring": "stream_detail", "keep_rate": 0.6}),
    ):
        config = common.replace(output_dir=folder / name, **changes)
        train.train(config, manifest.config.replace(**merging))
        found[name] = config.checkpoint_path
    return found


@pytest.fixture
def config(runs, data_dir, tmp_path):
    return CompareConfig(
        ckpts=tuple(runs[name] for name in ("tome", "lfgm", "plain")),
        data_dir=data_dir,
        output_dir=tmp_path,
        device="cpu",
    )


def changed(path, target, **fields):
    """The checkpoint with other facts in its manifest."""
    known = load_checkpoint(path)
    told = {key: getattr(known.manifest, key) for key in ("preprocess", "class_names", "superclasses", "training")}
    save_checkpoint(target, known.model, **{**told, **fields})
    return target


def right(path, data_dir, **changes):
    """Which test images a checkpoint gets right."""
    loaded = load_checkpoint(path, **changes)
    images = dataset.source(data_dir).load("test", 32)
    stage = compare.Bench(compare.BenchConfig(ckpt=path, data_dir=data_dir, device="cpu")).stage
    with torch.no_grad():
        return (loaded.model(stage(images.pixels)).logits.argmax(dim=1) == images.labels).numpy()[None]


def test_every_checkpoint_is_scored_as_it_was_trained_and_paired_with_the_first(config, runs, data_dir):
    tome, lfgm, plain = compare_checkpoints(config, "the command")
    assert [entry["label"] for entry in (tome, lfgm, plain)] == [
        "trained with ToMe, same blocks",
        "trained with FreqMerge (LFGM)",
        "trained without merging",
    ]
    assert [entry["config"]["scoring"] for entry in (tome, lfgm)] == ["none", "lfgm"]
    assert plain["config"]["keep_rate"] == 1.0
    assert [entry["schedule"] for entry in (tome, lfgm, plain)] == [(16, 11, 11), (16, 11, 11), (16, 16, 16)]
    assert plain["macs"] > lfgm["macs"] >= tome["macs"]
    assert lfgm["macs"] == cost(load_checkpoint(runs["lfgm"]).model.vit, read_manifest(runs["lfgm"]).config)
    expected = paired.compare(right(runs["lfgm"], data_dir), right(runs["tome"], data_dir))
    assert lfgm["against"] == {"first": expected._asdict()}
    assert lfgm["top1"] == right(runs["lfgm"], data_dir).mean()
    assert tome["against"] == {}


def test_all_may_be_scored_under_the_same_configs_too_and_paired_with_themselves_as_trained(config, runs, data_dir):
    entries = compare_checkpoints(config.replace(also=("none", "plain", "plain")), "the command")
    assert [entry["row"].split("/")[0] for entry in entries] == ["own"] * 3 + ["none"] * 3 + ["plain"] * 3
    by_row = {
        (entry["evaluated"], entry["label"].split()[2 if "with " in entry["label"] else 1]): entry for entry in entries
    }
    lfgm = by_row["none", "FreqMerge"]
    assert lfgm["config"]["scoring"] == "none"
    own = right(runs["lfgm"], data_dir)
    as_tome = right(runs["lfgm"], data_dir, scoring="none")
    assert lfgm["against"]["own"] == paired.compare(as_tome, own)._asdict()
    assert lfgm["against"]["first"] == paired.compare(as_tome, right(runs["tome"], data_dir))._asdict()
    assert by_row["none", "ToMe,"]["against"] == {}, "that is how it was trained"
    assert set(by_row["plain", "ToMe,"]["against"]) == {"own"}
    merging = by_row["none", "without"]
    assert merging["schedule"] == (16, 11, 11), "the schedule of the first checkpoint that merges"
    assert set(merging["against"]) == {"first", "own"}


def test_runs_from_the_same_weights_are_told_to_differ_in_their_merging_alone(config, trained):
    tome, lfgm, plain = compare_checkpoints(config, "the command")
    assert tome["started_from"] == lfgm["started_from"] == sha256(trained)
    assert lfgm["kinship"] == {"same_start": True, "merging": {"scoring": ("none", "lfgm")}, "beyond": {}}
    assert plain["kinship"]["merging"] == {"keep_rate": (0.7, 1.0)}
    assert (plain["kinship"]["same_start"], plain["kinship"]["beyond"]) == (True, {})
    assert (lfgm["run"]["epoch"], lfgm["run"]["steps"], lfgm["run"]["images_seen"]) == (1, 9, 360)
    told = study.page([tome, lfgm])
    assert f"All 2 runs started from the same weights ({sha256(trained)[:12]}) and differ in nothing but" in told
    assert "their merging (scoring), by their own records." in told
    assert "\\*" not in told


def test_what_differs_beyond_the_merging_is_named_and_its_row_is_marked(config, runs):
    entries = compare_checkpoints(config.replace(ckpts=(runs["tome"], runs["other"])), "the command")
    shared = entries[1]["kinship"]
    assert shared["same_start"] is True
    assert shared["merging"] == {"scoring": ("none", "stream_detail"), "keep_rate": (0.7, 0.6)}
    assert shared["beyond"] == {"lr": (1e-3, 2e-3), "seed": (0, 1)}
    told = study.page(entries)
    assert "| trained with detail of the stream, all channels \\* | as trained | 16 → 10 |" in told
    assert "more than the merging differs from the first. It has lr 0.002 instead of 0.001, seed 1" in told
    assert "differ in nothing but" not in told


def test_other_weights_to_start_from_are_told_and_unknown_ones_too(runs, tmp_path):
    first = read_manifest(runs["tome"])
    known = read_manifest(runs["lfgm"])
    for started, same in (({"file": "a", "sha256": "0" * 64}, False), ({"file": "a"}, None), ({"hub": "vit"}, False)):
        own = known.replace(training={**known.training, "started_from": started})
        found = study.kinship(first, own)
        assert (found.same_start, found.alike) == (same, False)
    drawn = {**known.training, "config": {**known.training["config"], "pretrained": None}}
    del drawn["started_from"]
    fresh = known.replace(training=drawn)
    assert study.kinship(fresh, fresh.replace(digest="1" * 64)).same_start is True


def test_checkpoints_that_do_not_see_the_same_test_images_are_refused_before_anything_is_measured(
    config, runs, tmp_path
):
    def refused(path):
        with pytest.raises(ConfigError) as caught:
            compare_checkpoints(config.replace(ckpts=(runs["tome"], path)), "the command")
        return str(caught.value)

    known = read_manifest(runs["lfgm"])
    names = ("ant", *known.class_names[1:])
    told = refused(changed(runs["lfgm"], tmp_path / "a.safetensors", class_names=names))
    assert f"expected the classes of {runs['tome']} (100 classes: apple" in told
    assert f"found 100 classes: ant, aquarium_fish, baby, … in {tmp_path / 'a.safetensors'}" in told
    preprocess = known.preprocess.replace(interpolation="bilinear")
    told = refused(changed(runs["lfgm"], tmp_path / "b.safetensors", preprocess=preprocess))
    assert "expected the preprocessing of" in told
    assert "interpolation='bicubic'" in told.split("found")[0]
    assert "interpolation='bilinear'" in told.split("found")[1]
    told = refused(changed(runs["lfgm"], tmp_path / "c.safetensors", training={**known.training, "data": "pets"}))
    assert "expected the data set of" in told
    assert "(uoft-cs/cifar100), found pets in" in told
    assert not (tmp_path / "results").exists()


def test_the_same_checkpoint_twice_and_strategies_that_do_not_exist_are_refused(config, runs, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(runs["tome"].read_bytes())
    with pytest.raises(ConfigError, match=r"ckpts: expected different checkpoints, found .* again in .*copy"):
        compare_checkpoints(config.replace(ckpts=(runs["tome"], copy)), "the command")
    with pytest.raises(ConfigError, match="also: expected some of plain, lfgm, .* without lgfm"):
        config.replace(also=("lgfm",))
    with pytest.raises(ConfigError, match="ckpts"):
        config.replace(ckpts=(runs["tome"],))


def test_a_strategy_needs_a_checkpoint_that_merges(runs):
    plain = read_manifest(runs["plain"])
    assert study.common([plain], ["plain"]) == {"plain": {"keep_rate": 1.0}}
    with pytest.raises(ConfigError, match="also: expected a checkpoint with a merging schedule"):
        study.common([plain], ["none"])


def test_the_command_writes_the_record_from_which_the_table_is_made(config, runs, data_dir, tmp_path, capsys):
    flags = ["--ckpts", str(runs["tome"]), str(runs["lfgm"]), "--also", "plain", "--data_dir", str(data_dir)]
    compare.main([*flags, "--output_dir", str(tmp_path), "--device", "cpu"])
    shown = capsys.readouterr().out
    entries = records.read("trained", tmp_path / "results")
    assert [entry["evaluated"] for entry in entries] == ["own", "own", "plain", "plain"]
    assert entries[0]["command"].startswith("python -m training.compare --ckpts ")
    page = tables.fill("<!-- table: trained -->\n<!-- end -->\n", tmp_path / "results")
    table = study.page(json.loads(json.dumps(entries)))
    assert table in page
    assert table in shown
    assert table in (tmp_path / "logs" / "trained.md").read_text(encoding="utf-8")
    assert "Measured: `python -m training.compare --ckpts" in page
    assert "- Evaluated as trained, against the checkpoint trained with ToMe, same blocks, in points: " in page
    assert "- Evaluated without merging, against the checkpoint trained with ToMe, same blocks, in points: " in page
    assert "Only 100 of 10,000 test images: a trial, not a result." in page
    assert "p-values are of single tests; with 4 of them" in page
    assert re.search(r"epoch 1 of 1, 360 images in \d+ (s|min)\.", page)


def test_without_records_the_comparison_says_that_it_was_not_run(tmp_path):
    assert tables.compared(tmp_path) == "not run\n"
