import pytest

from model.engines import openvino_engine
from tests.support import forked
from training.measure import records
from training.studies import runtimes


@pytest.fixture(scope="module")
def measured(trained, data_dir, tmp_path_factory):
    """The command in a process of its own: the shape checks here cannot be exported."""
    folder = tmp_path_factory.mktemp("runtimes")
    flags = ["--ckpt", trained, "--data_dir", data_dir, "--output_dir", folder, "--calibration_images", "20"]
    flags += ["--threads", 1, "--batch_sizes", 1, 3, "--repeats", 3, "--warm_up", 1]
    done = forked.run("-m", "training.runtimes", *flags)
    assert done.returncode == 0, done.stderr
    return records.read(runtimes.NAME, folder / "results"), done.stdout


@pytest.mark.slow
def test_plain_and_merging_run_in_every_precision_of_this_processor_and_in_onnx_runtime_beside_each_other(measured):
    entries, printed = measured
    here = [precision for precision in ("fp32", "bf16", "int8") if openvino_engine.why_not("cpu", precision) is None]
    own = {("OpenVINO", model, precision) for model in ("plain", "FreqMerge") for precision in here}
    peers = {("ONNX Runtime", model, precision) for model in ("plain", "FreqMerge") for precision in ("fp32", "int8")}
    for size in (1, 3):
        found = [entry for entry in entries if entry["batch_size"] == size]
        assert {(entry["runtime"], entry["model"], entry["precision"]) for entry in found} == own | peers
        assert len(found) == len(own | peers)
    for entry in entries:
        assert entry["images_per_s"] > 0
        assert (entry["speed_up"] == 1) == (tuple(entry[field] for field in runtimes.FIRST._fields) == runtimes.FIRST)
        assert (entry["gain"] == 1) == (entry["model"] == "plain")
        assert (0.5 if entry["precision"] == "int8" else 0.95) <= entry["agreement"] <= 1
        assert entry["compared"] == 20
    assert ("bf16: not run" in printed) == ("bf16" not in here)


def entry(runtime, model, precision, size, rate, gain):
    machine = {"device": "a CPU", "threads": 2}
    told = {"command": "measured", "checkpoint": "tiny", "digest": "d" * 64, "machine": machine, "repeats": 3}
    own = {"runtime": runtime, "model": model, "precision": precision, "batch_size": size}
    compared = {"agreement": 0.97, "compared": 100}
    return {**told, **own, **compared, "images_per_s": rate, "speed_up": rate / 10, "gain": gain}


def test_the_page_has_a_row_per_runner_and_says_which_goals_are_reached_and_what_did_not_run():
    entries = [
        entry(runtime, model, precision, size, rate, gain)
        for size in (1, 8)
        for runtime, model, precision, rate, gain in (
            ("OpenVINO", "plain", "fp32", 10, 1.0),
            ("OpenVINO", "FreqMerge", "fp32", 14.5, 1.45),
            ("OpenVINO", "plain", "int8", 20, 1.0),
            ("OpenVINO", "FreqMerge", "int8", 30, 1.5),
            ("ONNX Runtime", "FreqMerge", "fp32", 15, 1.5),
            ("ONNX Runtime", "FreqMerge", "int8", 45, 1.5),
        )
    ]
    for row in entries[5::6]:  # ONNX Runtime's int8
        row["agreement"] = 0.8
    page = runtimes.page(entries)
    assert "| OpenVINO | FreqMerge | int8 | 30.0 (3.00×) | 30.0 (3.00×) | 97% |\n" in page
    assert "- bf16: not run, this processor does not have it.\n" in page
    reached = "3.00 at batch 1 (goal 2.50: reached), 3.00 at batch 8 (goal 3.50: missed)."
    assert f"- FreqMerge in int8, to the plain model in fp32: {reached}\n" in page
    gained = "1.45 at batch 1 (goal 1.40: reached), 1.45 at batch 8 (goal 1.48: missed)."
    assert f"- FreqMerge to the plain model, both in fp32: {gained}\n" in page
    assert "ONNX Runtime's: 2.00 at batch 1, 2.00 at batch 8.\n" in page
    assert "- ONNX Runtime, FreqMerge, int8: not counted there, for it names too few of the first classes" in page
    assert "`measured`, checkpoint `tiny` (dddddddddddd), on a CPU, 2 threads" in page


def test_without_a_record_the_page_says_so():
    assert runtimes.page([]) == "not run\n"
