"""What training asks of CUDA, with torch's answers in place of a GPU's."""

import torch
from torch.overrides import TorchFunctionMode

from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from tests.support.fake_cuda import fake_cuda
from training import distributed, train
from training.config import TrainConfig
from training.run import arithmetic, task

WAITS = ("item", "tolist", "cpu", "numpy", "__int__", "__float__", "__bool__")


def test_bf16_that_a_gpu_only_emulates_is_not_taken_and_the_runs_own_gpu_is_asked(tmp_path, monkeypatch):
    with fake_cuda(monkeypatch, "A100", "T4") as cuda:
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or cuda.current == 0
        )
        config = TrainConfig(data_dir=tmp_path, output_dir=tmp_path)
        assert arithmetic.chosen(config, torch.device("cuda:0")).amp_type is torch.bfloat16
        assert arithmetic.chosen(config, torch.device("cuda:1")).amp_type is torch.float16
        assert cuda.current == 0


def test_under_torchrun_the_only_gpu_that_a_process_sees_is_its_own_whatever_its_local_rank(monkeypatch):
    with fake_cuda(monkeypatch, "A100"):
        assert distributed._own_device("auto", 3) == "cuda:0"
    with fake_cuda(monkeypatch, *["A100"] * 4):
        assert distributed._own_device("cuda", 3) == "cuda:3"


def test_enlargement_stays_float32_under_autocast():
    stage = InputStage(Preprocess(native_size=8), 24)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = stage.normalise(pixels)
    assert found.dtype == torch.float32
    assert torch.equal(found, stage.normalise(pixels))


class Waits(TorchFunctionMode):
    """Notes every call that waits for the device."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in WAITS:
            self.order.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once_and_only_when_all_of_it_is_on_its_way(recipe, tiny_model, monkeypatch):
    config = recipe.replace(augment=False)
    train.prepare(config)
    run = train.Run(config, task.freqmerge(config, tiny_model))
    batch = next(iter(run.loader.epoch(0, 0)))
    order = []
    monkeypatch.setattr(run, "_update", lambda loss: order.append("update"))
    with Waits(order):
        run._step(batch)
    assert order == ["update", "tolist"]
