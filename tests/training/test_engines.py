import json

import pytest

from model import save_checkpoint
from model.errors import ConfigError
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny
from training import engines, tables
from training.engines import EnginesConfig
from training.errors import TrainingError


@pytest.fixture
def files(tmp_path):
    save_checkpoint(tmp_path / "tiny.safetensors", tiny(), preprocess=Preprocess(native_size=16))
    return ["--models", str(tmp_path / "tiny.safetensors"), "--output_dir", str(tmp_path), "--device", "cpu"]


def test_an_engine_that_gives_way_to_another_is_never_timed_under_its_name(files):
    with pytest.raises(TrainingError, match="expected tensorrt to run here, found eager: .*CUDA device.*leave it out"):
        engines.main([*files, "--engines", "tensorrt"])


@pytest.mark.parametrize("name", ["eager", "warp"])
def test_what_is_no_engine_beside_eager_is_refused(name):
    with pytest.raises(ConfigError, match=f"expected some of inductor, openvino, tensorrt, found '{name}'"):
        EnginesConfig(engines=(name,))


def test_times_become_medians_and_ratios_to_eager_in_a_table(tmp_path):
    config = EnginesConfig(engines=("openvino",), batch_sizes=(2,), repeats=3)
    entry = {"model": "tiny", "precision": "fp32", "start_s": 1.2, "repeats": 3, "command": "measured"}
    machine = {"device": "a CPU", "threads": 2, "torch": "2.14"}
    rows = engines.summary({"eager": [1.0, 2.0, 4.0], "openvino": [0.5, 2.0, 1.0]}, 2)
    assert rows["eager"] == {"images_per_s": 1.0, "images_per_s_quartiles": [0.5, 2.0], "speed_up": 1.0}
    assert rows["openvino"] == {"images_per_s": 2.0, "images_per_s_quartiles": [1.0, 4.0], "speed_up": 2.0}
    lines = [
        {**entry, "machine": machine, "engine": kind, "batch_size": size, **told}
        for size in config.batch_sizes
        for kind, told in rows.items()
    ]
    (tmp_path / "engines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    filled = tables.engines(tmp_path)
    assert "| `tiny` | eager, fp32 | 1.0 | 1 |\n| `tiny` | openvino, fp32 | 2.0 (2.00×) | 1 |\n" in filled
    assert "`measured` on a CPU, 2 threads, torch 2.14" in filled


def test_without_a_record_the_table_says_so(tmp_path):
    assert tables.engines(tmp_path) == "not run\n"
