import pytest
import torch

from model import build, load_checkpoint
from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from training import train
from training.config import TrainConfig
from training.data import dataset
from training.run import arithmetic, task
from training.run.objectives import Plain

CPU = torch.device("cpu")
ASKED = arithmetic.has_bf16
"""What tests replace."""


@pytest.fixture
def bf16(monkeypatch):
    """A processor that has bfloat16, or so it says."""
    monkeypatch.setattr(arithmetic, "has_bf16", lambda: True)


@pytest.mark.parametrize(
    ("there", "fields", "told"),
    [
        (True, {}, "bfloat16, explicit attention"),
        (True, {"amp": False}, "float32, fused attention"),
        (True, {"amp_type": "float16"}, "float32, fused attention"),
        (True, {"amp": False, "amp_type": "bfloat16"}, "float32, fused attention"),
        (False, {}, "float32, fused attention"),
        (False, {"amp_type": "bfloat16"}, "bfloat16, explicit attention"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_it_or_where_it_is_told_to(monkeypatch, there, fields, told):
    monkeypatch.setattr(arithmetic, "has_bf16", lambda: there)
    found = arithmetic.chosen(TrainConfig(**fields), CPU)
    assert str(found) == told
    assert found.emulated == (told.startswith("bfloat16") and not there)


@pytest.mark.parametrize(
    ("there", "fields", "told"),
    [
        (True, {}, "bfloat16, fused attention"),
        (False, {}, "float16, fused attention"),
        (False, {"amp_type": "bfloat16"}, "bfloat16, fused attention"),
        (True, {"amp_type": "float16"}, "float16, fused attention"),
        (True, {"amp": False}, "float32, fused attention"),
    ],
)
def test_a_gpu_keeps_its_fused_attention_whatever_it_computes_in(monkeypatch, there, fields, told):
    monkeypatch.setattr(arithmetic, "cuda_has_bf16", lambda device: there)
    assert str(arithmetic.chosen(TrainConfig(**fields), torch.device("cuda", 0))) == told


def test_bfloat16_without_the_hardware_is_warned_of_in_one_line(recipe, tiny_model, capsys):
    train.train(recipe.replace(epochs=1, amp_type="bfloat16"), tiny_model)
    warning, first = capsys.readouterr().err.splitlines()[:2]
    assert warning == arithmetic.EMULATED
    assert first.startswith("cpu (1 thread), bfloat16, explicit attention: ")


def test_in_bfloat16_a_run_learns_keeps_float32_weights_and_resumes(recipe, tiny_model, bf16, capsys):
    config = recipe.replace(augment=False, freqmerge=True, ema_decay=0.9)
    history = train.train(config, tiny_model)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.1
    told = capsys.readouterr().err
    assert told.startswith("cpu (1 thread), bfloat16, explicit attention: ")
    assert "warning" not in told
    made = load_checkpoint(config.checkpoint_path)
    assert {tensor.dtype for tensor in made.model.state_dict().values()} == {torch.float32}
    assert train.train(config.replace(resume=True), tiny_model) == history


def test_in_bfloat16_scores_and_similarities_stay_float32_while_the_layers_do_not(
    recipe, tiny_model, bf16, data_dir, monkeypatch
):
    config = recipe.replace(ema_decay=0.0)
    run = train.Run(config, task.freqmerge(config, tiny_model))
    seen = {}
    strategy = run.model.strategy
    monkeypatch.setattr(type(run.model), "strategy", property(lambda self: Spy(strategy, seen)), raising=True)
    run.model.vit.blocks[0].mlp.fc1.register_forward_hook(lambda *passed: seen.update(layer=passed[2].dtype))
    run.objective.train()
    images = dataset.source(data_dir).load("train", 32).take(torch.arange(8))
    with run._autocast():
        loss, logits = run.objective(images.pixels.float(), images.labels)
    loss.backward()
    assert seen == {"layer": torch.bfloat16, "autocast": False, "score": torch.float32, "mean": torch.float32}
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.float32)


class Spy:
    """A strategy that notes what it is asked in."""

    def __init__(self, strategy, seen):
        self.strategy, self.seen = strategy, seen

    def __getattr__(self, name):
        return getattr(self.strategy, name)

    def score(self, view):
        self.seen["autocast"] = torch.is_autocast_enabled("cpu")
        self.seen["mean"] = view.first.mean.dtype
        found = self.strategy.score(view)
        self.seen["score"] = found.dtype
        return found


@pytest.mark.parametrize("keep_rate", [0.7, 1.0])
@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_explicit_attention_gives_the_loss_and_gradients_of_the_fused_kernel(tiny_model, backbone, keep_rate):
    config = tiny_model.replace(backbone=backbone, keep_rate=keep_rate, merge_layers=(0, 1))
    pixels = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    torch.manual_seed(0)
    objective = Plain(build(config), InputStage(Preprocess(), 32)).train()
    found = []
    for fused in (True, False):
        if not fused:
            arithmetic.unfuse(objective)
        objective.zero_grad()
        loss, _ = objective(pixels, torch.arange(4))
        loss.backward()
        found.append((loss.detach(), [parameter.grad.clone() for parameter in objective.parameters()]))
    assert not any(getattr(module, "fused_attn", False) for module in objective.modules())
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("answers", [(False, False), (True, False), (False, True)])
def test_a_processor_has_bfloat16_with_avx512_or_amx(monkeypatch, answers):
    for name, answer in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), answers, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer)
    assert ASKED() is any(answers)
