import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model import export, load_checkpoint, save_checkpoint
from model.engines import openvino_engine, openvino_graph
from model.engines.choice import create_engine
from model.engines.engine import Engine
from model.errors import EngineError
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny
from tests.support import forked

PROGRAM = """
import sys
from model import export
shared = ["--engine", "openvino", "--ckpt", sys.argv[1], "--out", sys.argv[2]]
export.main(shared)
export.main([*shared, "--keep_rate", "1"])
print(sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__, sys.modules["openvino_telemetry"])
"""
"""Builds engines in a process of its own: the shape checks of the test run cannot be exported."""


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from model.engines.openvino_engine import OpenVINOEngine

compiled = Path(sys.argv[1]).read_bytes()
first, second = (OpenVINOEngine(compiled, 16, 17, 1) for _ in range(2))
del first
del second
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""
"""Two engines that go in the order in which they came, as where one gives way to another, and then a signal."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino")
    path = folder / "tiny.safetensors"
    save_checkpoint(path, tiny(), preprocess=Preprocess(native_size=16))
    done = forked.run("-c", PROGRAM, path, folder)
    assert done.returncode == 0, done.stderr
    return path, folder, done.stdout.splitlines()


def engines(built, **changes):
    """The engine as `auto` takes it, and eager."""
    path, folder, _ = built
    taken = create_engine(load_checkpoint(path, **changes), "auto", "cpu", max_batch_size=17, cache=folder)
    return taken, create_engine(load_checkpoint(path, **changes), "eager", "cpu", max_batch_size=17)


def pictures(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def assert_same(found, wanted):
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-4)
    np.testing.assert_allclose(found.frequency_scores, wanted.frequency_scores, atol=1e-4)
    assert np.array_equal(found.source_maps, wanted.source_maps)
    assert [part.dtype for part in found] == [np.float32, np.float32, np.int64]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"keep_rate": 1.0}])
def test_openvino_answers_as_eager_at_every_batch_size_with_and_without_merging(built, changes):
    taken, eager = engines(built, **changes)
    assert isinstance(taken, Engine)
    for size in (1, 2, 3, 17):
        assert_same(taken.run(pictures(size)), eager.run(pictures(size)))


@pytest.mark.slow
def test_auto_takes_openvino_where_it_is_installed_and_says_so(built):
    taken, _ = engines(built)
    assert (taken.kind, taken.device, taken.precision) == ("openvino", "cpu", "fp32")
    assert taken.reason == "openvino: the best that this device and these packages have"


@pytest.mark.slow
def test_no_image_of_a_batch_influences_another_and_an_answer_outlives_the_next_batch(built):
    taken, _ = engines(built)
    whole = taken.run(pictures(17))
    for place in (0, 16):
        alone = taken.run(pictures(17)[place : place + 1])
        np.testing.assert_allclose(alone.logits[0], whole.logits[place], atol=1e-5)
        assert np.array_equal(alone.source_maps[0], whole.source_maps[place])
    assert_same(whole, taken.run(pictures(17)))


@pytest.mark.slow
def test_a_batch_of_another_shape_is_refused(built):
    taken, _ = engines(built)
    with pytest.raises(EngineError, match=r"expected 1\.\.17 images, found 18; split the batch"):
        taken.run(pictures(18))
    with pytest.raises(EngineError, match="found float32"):
        taken.run(np.zeros((1, 3, 16, 16), np.float32))


@pytest.mark.slow
def test_warming_up_runs_the_smallest_and_the_largest_batch_once(built, monkeypatch):
    _, folder, _ = built
    engine = openvino_engine.OpenVINOEngine(sorted(folder.glob("*.engine"))[0].read_bytes(), 16, 17, 1)
    sizes, run = [], engine.run
    monkeypatch.setattr(engine, "run", lambda images: (sizes.append(len(images)), run(images))[1])
    engine.run(pictures(17))
    engine.warm_up()
    engine.warm_up()
    assert sizes == [17, 1]


@pytest.mark.slow
def test_an_export_is_what_the_service_finds_in_its_cache_and_openvino_reports_to_nobody(built):
    _, folder, printed = built
    assert {Path(line) for line in printed[:4]} == {*folder.glob("*.engine"), *folder.glob("*.json")}
    assert printed[4] == "openvino.tools.ovc.telemetry_stub None"


@pytest.mark.slow
def test_a_signal_is_handled_after_engines_have_come_and_gone(built):
    _, folder, _ = built
    engine, *_ = sorted(folder.glob("*.engine"))
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(engine)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path / "tiny.safetensors", tiny(), preprocess=Preprocess(native_size=16))
    return load_checkpoint(tmp_path / "tiny.safetensors")


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python itself keeps for a module that must not be found


@pytest.mark.usefixtures("not_installed")
def test_without_the_package_auto_is_eager_and_says_how_to_install_it(checkpoint, caplog):
    caplog.set_level(logging.WARNING)
    engine = create_engine(checkpoint, "auto", "cpu")
    missing = "openvino cannot be used: the package openvino is not installed (pip install openvino)"
    assert (engine.kind, engine.reason, caplog.messages) == ("eager", f"eager: {missing}", [])


@pytest.mark.usefixtures("not_installed")
def test_without_the_package_openvino_by_name_gives_way_to_eager_aloud(checkpoint, caplog):
    caplog.set_level(logging.WARNING)
    assert create_engine(checkpoint, "openvino", "cpu").kind == "eager"
    [told] = caplog.messages
    assert "is not installed" in told
    assert told.endswith("eager takes its place")


@pytest.mark.usefixtures("not_installed")
def test_without_the_package_nothing_is_built_or_loaded(checkpoint):
    with pytest.raises(EngineError, match="is not installed"):
        openvino_graph.build(checkpoint)
    with pytest.raises(EngineError, match="is not installed"):
        openvino_engine.OpenVINOEngine(b"", 16, 1, 1)


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("fp16", "it computes in fp32, bf16, int8, and the precision is fp16"),
        ("bf16", "this processor does not compute in bf16 (AVX512-BF16 or AMX)"),
    ],
)
def test_half_precision_that_openvino_lacks_stays_with_eager_which_computes_in_it(
    checkpoint, monkeypatch, precision, why
):
    monkeypatch.setattr(openvino_engine, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    engine = create_engine(checkpoint, "auto", "cpu", precision=precision)
    assert (engine.kind, engine.precision) == ("eager", precision)
    assert engine.reason == f"eager: openvino cannot be used: {why}"


def test_openvino_runs_on_no_gpu():
    assert openvino_engine.why_not("cuda:0") == "it runs on a CPU, and the device is cuda:0"


def test_bytes_that_are_no_engine_are_refused():
    with pytest.raises(EngineError, match="openvino: the engine could not be loaded"):
        openvino_engine.OpenVINOEngine(b"no engine at all", 16, 1, 1)


def test_an_export_in_half_precision_is_refused_before_anything_is_loaded(tmp_path, capsys):
    with pytest.raises(SystemExit):
        export.main(f"--engine openvino --precision fp16 --ckpt {tmp_path}/none --out {tmp_path}".split())
    assert "it computes in fp32, bf16, int8, and the precision is fp16" in capsys.readouterr().err
