import pytest

from training import gpu
from training.measure import records
from training.studies import gpu as study
from training.studies.gpu import Runner


def test_every_model_runs_alike_and_is_held_against_the_first_one(trained, tmp_path, capsys):
    flags = ["--ckpt", str(trained), "--device", "cpu", "--engines", "eager", "--precisions", "fp32", "bf16"]
    flags += ["--models", "plain", "freqmerge", "--batch_sizes", "1", "3", "--repeats", "3", "--warm_up", "3"]
    gpu.main([*flags, "--threads", "1", "--output_dir", str(tmp_path)])
    entries = records.read(study.NAME, tmp_path / "results")
    for size in (1, 3):
        found = [Runner(*(e[field] for field in Runner._fields)) for e in entries if e["batch_size"] == size]
        assert found == [
            Runner(model, "eager", precision) for model in ("plain", "FreqMerge") for precision in ("fp32", "bf16")
        ]
    plain, merging = (next(e for e in entries if e["model"] == model) for model in ("plain", "FreqMerge"))
    assert plain["gain"] == plain["gain_by_macs"] == 1
    assert merging["gain_by_macs"] == pytest.approx(plain["macs"] / merging["macs"])
    assert merging["macs"] < plain["macs"]
    assert "not run" not in capsys.readouterr().out


def test_tome_is_brought_to_freqmerges_cost_in_every_block(trained):
    changes = gpu._changes(trained, "tome", gpu.pick_device("cpu"))
    assert changes["scoring"] == "none"
    assert len(changes["merge_layers"]) == len(changes["merge_counts"]) >= 1


def entry(model, engine, size, rate, gain):
    machine = {"device": "a GPU", "torch": "2"}
    told = {"command": "measured", "checkpoint": "tiny", "digest": "d" * 64, "machine": machine, "repeats": 3}
    own = {"model": model, "engine": engine, "precision": "fp16", "batch_size": size}
    return {**told, **own, "macs": 3e9, "images_per_s": rate, "gain": gain, "gain_by_macs": 1.5}


def test_the_page_says_which_goals_the_compiled_model_reaches():
    entries = [
        entry(model, engine, size, rate, gain)
        for size, faster in ((1, 1.1), (256, 1.3))
        for model, engine, rate, gain in (
            ("plain", "inductor", 20_000, 1.0),
            ("FreqMerge", "eager", 9_000, 0.5),
            ("FreqMerge", "inductor", 20_000 * faster, faster),
        )
    ]
    page = study.page(entries)
    assert "| FreqMerge | inductor | fp16 | 3.00 | 22,000 (1.10×) | 26,000 (1.30×) |\n" in page
    assert "1.10 at batch 1 (goal 1.00: reached), 1.30 at batch 256 (goal 1.50: missed)." in page
    assert "26,000 images/s (goal 25,000: reached); 87% of the 1.50 that" in page
    assert "promise (goal 90%: missed)." in page
    assert study.page([]) == "not run\n"
