import pytest

from model.engines import openvino_engine
from tests.support import forked
from training.measure import records
from training.measure.graph_parts import MERGING, OTHER, PARTS
from training.studies import breakdown


def run(folder, *flags):
    """The command in a process of its own: the shape checks here cannot be exported."""
    return forked.run("-m", "training.breakdown", "--output_dir", folder, "--threads", 1, *flags)


@pytest.mark.slow
def test_every_node_belongs_to_a_part_and_merging_takes_time_where_tokens_merge_only(trained, tmp_path):
    for keep_rate in (0.7, 1):
        folder = tmp_path / str(keep_rate)
        flags = ["--ckpt", trained, "--keep_rate", keep_rate, "--precisions", "fp32", "--batch_sizes", "1", "8"]
        done = run(folder, *flags, "--repeats", "5")
        assert done.returncode == 0, done.stderr
        entries = records.read(breakdown.NAME, folder / "results")
        assert [entry["batch_size"] for entry in entries] == [1, 8]
        for entry in entries:
            parts = entry["parts_ms"]
            assert set(parts) == set(PARTS)
            assert all(entry["nodes"][part] for part in ("attention", "MLP", "LayerNorm", "pixels and patches"))
            rounding = 0.001 * sum(entry["nodes"].values())  # OpenVINO counts whole microseconds
            assert 0 < sum(parts.values()) < entry["batch_ms"] + rounding, "nodes run one after the other"
            assert entry["nodes"][OTHER] < 0.5 * sum(entry["nodes"].values())
            merging = {part for part in MERGING if entry["nodes"][part]}
            assert (
                merging >= {"matching", "weighted mean", "source maps", "log sizes"}
                if keep_rate < 1
                else not (merging - {"scores"})
            )


def test_without_its_artifact_int8_is_refused_by_name_and_left_out_unasked(trained, tmp_path):
    refused = run(tmp_path, "--ckpt", trained, "--precisions", "int8")
    assert refused.returncode != 0
    assert "expected a portable artifact, found none" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "results").exists()
    done = run(tmp_path, "--ckpt", trained, "--batch_sizes", "1", "--repeats", "3")
    assert done.returncode == 0, done.stderr
    assert "int8: not run: " in done.stdout
    assert ("bf16: not run: " in done.stdout) == (openvino_engine.why_not("cpu", "bf16") is not None)


@pytest.mark.slow
def test_the_nodes_of_an_int8_artifact_belong_to_the_same_parts(int8_export, tmp_path):
    ckpt, _ = int8_export
    done = run(tmp_path, "--ckpt", ckpt, "--precisions", "int8", "--batch_sizes", "2", "--repeats", "3")
    assert done.returncode == 0, done.stderr
    [entry] = records.read(breakdown.NAME, tmp_path / "results")
    nodes = entry["nodes"]
    assert nodes[OTHER] < 0.5 * sum(nodes.values())
    assert all(nodes[part] for part in ("attention", "MLP", "LayerNorm", *MERGING))


def entry(size, **parts):
    machine = {"device": "a CPU", "threads": 2}
    told = {"command": "measured", "checkpoint": "tiny", "digest": "d" * 64, "machine": machine, "repeats": 3}
    own = {"keep_rate": 0.7, "precision": "int8", "batch_size": size, "batch_ms": 11.0}
    return {**told, **own, "parts_ms": {**dict.fromkeys(PARTS, 0.0), **parts}}


def test_the_page_has_shares_of_every_part_that_takes_time_and_the_sum_of_what_merging_adds():
    page = breakdown.page([entry(1, MLP=6.0, matching=1.5, scores=0.5), entry(8, MLP=7.0, matching=1.0)])
    assert "| part | int8, batch 1, ms | int8, batch 8, ms |\n" in page
    assert "| matching | 1.50 (18.8 %) | 1.00 (12.5 %) |\n" in page
    assert "| all nodes | 8.00 | 8.00 |\n| the batch, by the clock | 11.00 | 11.00 |\n" in page
    assert "attention" not in page
    assert "takes 25.0 % in int8, batch 1, 12.5 % in int8, batch 8." in page
    assert "`measured`, checkpoint `tiny` (dddddddddddd) at keep rate 0.7, on a CPU, 2 threads" in page


def test_without_a_record_the_page_says_so():
    assert breakdown.page([]) == "not run\n"
