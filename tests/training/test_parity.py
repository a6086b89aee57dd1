import numpy as np
import pytest

from model import save_checkpoint
from model.errors import ConfigError
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny
from tests.support import standin
from training import parity
from training.measure import records
from training.parity import Answers, Parity, ParityConfig


def test_parity_counts_first_classes_and_merges_and_takes_the_largest_differences():
    wanted = Answers(np.array([[2.0, 1], [0, 1]]), np.array([[0.0, 1], [0.5, 1]]), np.array([[0, 1], [1, 0]]))
    found = Answers(np.array([[2.5, 1], [1, 0.5]]), np.array([[0.0, 1], [0.25, 1]]), np.array([[0, 1], [0, 1]]))
    assert parity.compare(found, wanted) == Parity(0.5, 0.25, 1.0, 0.5)


def test_every_engine_is_held_against_eager_float32_and_recorded(tmp_path, capsys):
    save_checkpoint(tmp_path / "tiny.safetensors", tiny(), preprocess=Preprocess(native_size=32))
    files = ["--ckpt", str(tmp_path / "tiny.safetensors"), "--data_dir", str(standin.write(tmp_path / "data"))]
    engines = ["--engines", "eager:fp32", "eager:bf16", "--device", "cpu", "--batch_size", "64"]
    for _ in range(2):  # a second run takes the place of the first
        parity.main([*files, *engines, "--output_dir", str(tmp_path)])
    same, rounded = records.read("parity", tmp_path / "results")
    assert (same["engine"], same["ran"], same["images"], same["agreement"]) == ("eager:fp32", "eager", 100, 1)
    assert (same["score_max_difference"], same["same_source_map"]) == (0, 1)
    assert (rounded["engine"], rounded["reference_top1"]) == ("eager:bf16", same["top1"])
    assert 0 < rounded["logits_max_difference"] < 10
    assert "agrees on 100.00% (reached: 99.5%)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["eager", "warp:fp32", "eager:int8"])
def test_an_engine_or_precision_that_does_not_exist_is_refused(name):
    with pytest.raises(
        ConfigError, match="expected one of eager, inductor, openvino, tensorrt, a colon, and one of fp32"
    ):
        ParityConfig(engines=(name,))
