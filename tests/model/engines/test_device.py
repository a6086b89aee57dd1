import pytest
import torch

from model import processor
from model.engines.choice import create_engine
from model.engines.device import pick_device, probe
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError
from model.processor import usable_cpus
from tests.support.fake_cuda import fake_cuda

OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"


@pytest.fixture
def old_driver(monkeypatch):
    """A host whose driver torch refuses."""

    def refuse():
        raise RuntimeError(OLD_DRIVER)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("old_driver")
def test_a_driver_that_is_too_old_is_told_in_torchs_own_words(checkpoint):
    words = "The NVIDIA driver on your system is too old (found version 12040)"
    with pytest.raises(EngineError, match="this torch sees no CUDA device") as refused:
        pick_device("cuda")
    assert words in str(refused.value)
    assert create_engine(checkpoint, "auto", "auto", precision="fp16").reason.endswith(f"no CUDA device: {words}")


def test_a_host_without_a_driver_has_nothing_to_explain(checkpoint, monkeypatch):
    def none():
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", none)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA" not in create_engine(checkpoint, "auto", "auto", precision="fp16").reason


def test_a_device_that_computes_passes_the_probe():
    probe(torch.device("cpu"))


def test_an_error_that_sticks_is_found_by_the_probe(monkeypatch):
    def sticks(*arguments, **options):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "ones", sticks)
    with pytest.raises(EngineError, match="cuda:0 does not compute any more: CUDA error: an illegal memory access"):
        probe(torch.device("cuda:0"))


def test_a_device_that_computes_wrong_is_found_by_the_probe(monkeypatch):
    monkeypatch.setattr(torch, "ones", torch.zeros)
    with pytest.raises(EngineError, match="expected 64, found 0"):
        probe(torch.device("cpu"))


@pytest.mark.parametrize(
    ("told", "cpus"),
    [("max 100000\n", 8), ("200000 100000\n", 2), ("50000 100000\n", 1), ("1600000 100000\n", 8), ("", 8)],
)
def test_the_processors_are_those_of_the_container_not_of_the_host(tmp_path, monkeypatch, told, cpus):
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda process: set(range(8)))
    (tmp_path / "cpu.max").write_text(told)
    assert usable_cpus(tmp_path / "cpu.max") == cpus


def test_torch_takes_no_more_threads_than_the_container_has_processors(checkpoint, monkeypatch):
    before = torch.get_num_threads()
    try:
        for usable, taken in ((3, 3), (8, 4)):
            torch.set_num_threads(4)
            monkeypatch.setattr(processor, "usable_cpus", lambda usable=usable: usable)
            create_engine(checkpoint, "eager", "cpu")
            assert torch.get_num_threads() == taken
        create_engine(checkpoint, "eager", "cpu", threads=5)
        assert torch.get_num_threads() == 5, "an operator's own number"
    finally:
        torch.set_num_threads(before)


def test_inductor_compiles_in_as_many_processes_as_the_container_has_processors(checkpoint, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr("model.engines.torch_engine.usable_cpus", lambda: 3)
    with config.patch(compile_threads=32):
        create_engine(checkpoint, "inductor", "cpu")
        assert config.compile_threads == 3


def test_on_cuda_eager_runs_on_the_device_that_was_asked_for(checkpoint, monkeypatch):
    with fake_cuda(monkeypatch, "GPU A", "GPU B") as cuda:
        engine = create_engine(checkpoint, "eager", "cuda:1", precision="fp32")
        engine.warm_up()
        assert isinstance(engine, TorchEngine)
        assert (engine.device, cuda.used) == ("cuda:1", {"cuda:1"})
        with pytest.raises(EngineError, match="expected a CUDA device below 2, found 'cuda:2'"):
            pick_device("cuda:2")
