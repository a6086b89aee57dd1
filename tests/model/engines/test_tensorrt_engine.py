"""The `tensorrt` engine from build to answer, on a stand-in for TensorRT and GPUs that are the CPU."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from model import load_checkpoint, save_checkpoint
from model.engines import artifact, tensorrt_engine
from model.engines.choice import create_engine
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny
from tests.support.fake_cuda import FakeCuda, fake_cuda
from tests.support.standin_tensorrt import MAGIC, Fault, install

MOST = 12
CUDA = torch.device("cuda:1")


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """What the program says of the whole way, its checkpoint, and the folder with what it left."""
    folder = tmp_path_factory.mktemp("tensorrt")
    save_checkpoint(folder / "tiny.safetensors", tiny(), preprocess=Preprocess(native_size=16))
    program = [sys.executable, "-m", "tests.model.engines.standin_path", str(folder / "tiny.safetensors"), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], folder


@dataclass
class Host:
    """A host with two GPUs, the stand-in and an empty cache."""

    cuda: FakeCuda
    faults: Fault
    cache: Path
    path: Path

    def engine(self, kind="tensorrt", **options):
        """An engine on the second GPU; an inductor is eager here, which takes no minutes."""
        return create_engine(load_checkpoint(self.path), kind, "cuda:1", MOST, precision="fp32", **options)

    def start(self):
        """What a service that keeps its engines starts with."""
        return self.engine(cache=self.cache)

    @property
    def kept(self):
        return sorted(path.name.split(".", 1)[1] for path in self.cache.iterdir())


@pytest.fixture
def host(way, tmp_path, monkeypatch):
    _, folder = way
    program = torch.export.load(folder / "program.pt2")  # exporting cannot be done under the shape checks of the tests
    monkeypatch.setattr(tensorrt_engine, "exported", lambda classifier, largest: program)
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    faults = install(monkeypatch)
    with fake_cuda(monkeypatch, "GPU A", "GPU B") as cuda:
        (tmp_path / "cache").mkdir()
        yield Host(cuda, faults, tmp_path / "cache", folder / "tiny.safetensors")


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


@pytest.mark.slow
def test_the_engine_is_built_kept_loaded_and_answers_as_eager_on_the_device_that_was_asked_for(way):
    built, kept = way[0]
    assert (built["start"], kept["start"]) == ("built", "kept")
    for told in (built, kept):
        assert (told["kind"], told["device"], told["precision"]) == ("tensorrt", "cuda:1", "fp32")
        assert told["reason"] == "tensorrt: the best that this device and these packages have"
        assert told["builds"] == [{"device": "cuda:1", "tf32": False, "current": 1}]  # the second start builds nothing
        assert told["deserialised_on"] == 1
        assert max(told["differences"]) < 1e-5


@pytest.mark.slow
def test_every_profile_is_warmed_at_both_ends(way):
    assert all(told["warmed"] == [[0, 1], [1, 2], [1, 8], [2, 9], [2, 12]] for told in way[0])


def test_profiles_follow_the_largest_batch_without_gaps():
    ranges = {
        most: [(one.smallest, one.best, one.largest) for one in tensorrt_engine.profiles(most)]
        for most in (1, 2, 8, 32)
    }
    assert ranges == {
        1: [(1, 1, 1), (2, 2, 2)],
        2: [(1, 1, 1), (2, 2, 2)],
        8: [(1, 1, 1), (2, 8, 8)],
        32: [(1, 1, 1), (2, 8, 8), (9, 32, 32)],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuse_launches", "refused the launch of 3 images: the launch failed"),
        ("skip_launches", "left the answers of 3 images unwritten"),
    ],
)
def test_a_launch_that_writes_nothing_is_an_error_and_never_the_answer_of_an_earlier_batch(host, fault, words):
    engine = host.start()
    before = engine.run(pictures(3))
    setattr(host.faults, fault, True)
    with pytest.raises(EngineError, match=words):
        engine.run(pictures(3, seed=1))
    setattr(host.faults, fault, False)
    assert np.array_equal(engine.run(pictures(3)).logits, before.logits)


@pytest.mark.slow
def test_an_engine_that_answers_for_other_pictures_gives_way_at_start(host):
    host.faults.answer_other = True
    engine = host.start()
    assert engine.kind == "inductor"
    assert "tensorrt: expected the answers of eager in a batch of 8, found logits off by" in engine.reason


@pytest.mark.slow
def test_an_engine_that_tensorrt_refuses_is_deleted_and_built_once(host, caplog):
    host.start()
    host.faults.refuse_engines = 1
    assert host.start().kind == "tensorrt"
    assert (len(host.faults.builds), host.kept) == (2, ["engine", "json"])
    assert "not compatible with this version of TensorRT" in caplog.text


@pytest.mark.slow
def test_an_engine_that_is_refused_again_is_not_kept_nor_built_at_the_next_start(host):
    host.faults.refuse_engines = 1
    assert host.start().kind == "inductor"
    assert (len(host.faults.builds), host.kept) == (1, ["failed.json"])
    again = host.start()
    assert (again.kind, len(host.faults.builds)) == ("inductor", 1)
    assert "an earlier build failed (tensorrt on cuda:1: TensorRT refused the engine: the engine plan" in again.reason
    next(host.cache.iterdir()).unlink()  # as the reason advises
    assert (host.start().kind, host.kept) == ("tensorrt", ["engine", "json"])


@pytest.mark.slow
def test_a_build_that_ends_with_its_process_is_begun_twice_and_no_more(host):
    host.faults.build_error = KeyboardInterrupt()  # type: ignore[assignment]  # as abrupt as a test can be
    for _ in range(artifact.ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            host.start()
    assert host.start().kind == "inductor"
    assert len(host.faults.builds) == artifact.ATTEMPTS


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("no tactic"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_build_that_fails_gives_way_to_the_next_engine(host, error):
    host.faults.build_error = error
    engine = host.start()
    assert engine.kind == "inductor"
    assert engine.reason == f"inductor: tensorrt: tiny could not be built: {type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("tensorrt", ImportError("libnvinfer.so.11: cannot open shared object file")),
        ("torch_tensorrt", KeyError("getpwuid(): uid not found: 12345")),
    ],
)
def test_a_package_that_cannot_be_imported_gives_way_and_is_not_remembered_as_a_failed_build(
    host, monkeypatch, package, error
):
    found = tensorrt_engine.importlib.import_module

    def failing(name):
        if name == package:
            raise error
        return found(name)

    monkeypatch.setattr(tensorrt_engine.importlib, "import_module", failing)
    engine = host.start()
    assert engine.kind == "inductor"
    assert f"the package {package} cannot be imported: {type(error).__name__}: {error}" in engine.reason
    assert host.kept == []


def test_an_engine_that_cannot_be_constructed_for_whatever_reason_gives_way(host, monkeypatch):
    def broken(self, classifier, kind, *rest):
        if kind == "inductor":
            raise RuntimeError("no kernel image is available")
        return usual(self, classifier, kind, *rest)

    usual = TorchEngine.__init__
    host.faults.build_error = RuntimeError("no")
    monkeypatch.setattr(TorchEngine, "__init__", broken)
    engine = host.engine("auto")
    assert engine.kind == "eager"
    assert "inductor: the engine could not be made on cuda:1: RuntimeError: no kernel image" in engine.reason


def test_bytes_of_another_version_are_refused_with_the_words_of_tensorrt(host):
    with pytest.raises(EngineError, match="refused the engine: the engine plan file is not compatible"):
        tensorrt_engine.TensorRTEngine(MAGIC + b"10.0\n", 16, "fp32", CUDA, MOST)


def test_cuda_engines_switch_tf32_off_for_convolutions_too(host, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    host.engine("eager")
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)


def test_the_key_holds_the_versions_of_the_distributions_that_torch_tensorrt_requires(host, monkeypatch):
    from tests.model.engines.operators import facts

    required = {line.split("<")[0].split(">")[0].split("=")[0] for line in facts()["requires"]}
    named = {name for name in required if name.startswith("tensorrt")}
    assert named <= set(artifact.PACKAGES["tensorrt"])
    checkpoint = load_checkpoint(host.path)
    keys = set()
    for version in ("11.1.0.106", "11.1.1.0"):
        monkeypatch.setattr(artifact, "version", lambda package, version=version: version)
        keys.add(artifact.origin_of(checkpoint, "fp32", CUDA).key)
    assert len(keys) == 2
