import json

import pytest

from model.engines.classifier import DTYPES
from tests.model.engines.operators import facts
from tests.support import forked
from tests.support.paths import MINI

FORBIDDEN = ("scatter", "gather", "fft", "index", "cumsum", "sort")
"""What Torch-TensorRT lacks, unrolls, runs as a loop or drops from an engine of a dynamic batch."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs():
    done = forked.run("-m", "tests.model.engines.one_graph", MINI)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def models(programs):
    return [told for told in programs if told["model"] != "control"]


def test_a_model_exports_as_one_program_in_every_precision_a_vit_small_in_that_of_cuda(models):
    assert [told["precision"] for told in models] == ["fp32", "bf16", "fp16"]
    assert sorted(DTYPES) == sorted(told["precision"] for told in models)
    assert [told["model"] for told in models] == [MINI.stem, MINI.stem, "small"]


def test_one_exported_program_answers_any_batch_exactly_as_the_model(models):
    assert all(difference == 0 for told in models for difference in told["differences"])
    assert all(told["types"] == ["torch.float32", "torch.float32", "torch.int64"] for told in models)


def test_torch_tensorrt_converts_every_operator_with_a_dynamic_batch(models):
    assert facts()["version"].startswith("2.14")
    for told in models:
        assert len(told["operators"]) > 30
        assert (told["unconverted"], told["replaced_otherwise"]) == ([], [])


def test_no_scatter_gather_fft_or_running_sum_is_left(models):
    left = {name for told in models for name in told["operators"] if any(word in name for word in FORBIDDEN)}
    assert left == set()


def test_the_same_check_refuses_a_model_that_gathers_scatters_and_transforms(programs):
    told = next(told for told in programs if told["model"] == "control")
    assert {"aten.gather.default", "aten._fft_r2c.default"} <= set(told["unconverted"])
    assert "aten.scatter_reduce.two" in told["replaced_otherwise"]  # unrolled, one scatter for every source


def test_exported_on_cuda_the_graph_has_the_same_operators_and_nothing_of_it_falls_to_the_cpu():
    done = forked.run("-m", "tests.model.engines.cuda_graph")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["cuda"]) > 300
    assert told["cuda"] == told["cpu"]
    assert told["places"] == ["cuda:0"]  # a tensor on the CPU would end the recording of a CUDA graph
