import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from model import build, load_checkpoint, save_checkpoint
from model.engines.classifier import Classifier
from model.errors import CheckpointError, ConfigError
from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from tests.support import forked
from training import train
from training.config import TrainConfig
from training.data.augment import Augmentation, seed_everything
from training.errors import SaveError, WeightsError
from training.run import task
from training.run.objectives import Distilled, Plain, soft_divergence
from training.run.pretrained import filled

CPU = torch.device("cpu")


def drawn(count=8):
    """Random uint8 images and their labels."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return pixels, torch.arange(count)


def augmented(pixels, labels, seed=1, **fields):
    seed_everything(seed)
    return Augmentation(TrainConfig(augment=False, batch_size=8, **fields), Preprocess(), 100, CPU)(pixels, labels)


def test_without_augmentation_the_pixels_and_labels_are_those_given():
    pixels, labels = drawn()
    images, targets = augmented(pixels, labels)
    assert torch.equal(images, pixels.float())
    assert torch.equal(targets, labels)


def test_mixup_blends_an_image_with_its_mirror_place_in_the_batch_and_its_target_alike():
    pixels, labels = drawn()
    images, targets = augmented(pixels, labels, seed=6, mixup=0.8)
    share = targets[0, 0].item()
    assert 0.05 < share < 0.95
    assert torch.allclose(images, share * pixels.float() + (1 - share) * pixels.flip(0).float(), atol=1e-3)
    assert targets[2, 2].item() == pytest.approx(share)
    assert targets[2, 5].item() == pytest.approx(1 - share, abs=1e-6)
    assert torch.allclose(targets.sum(dim=1), torch.ones(8))


def test_cutmix_replaces_a_rectangle_whose_area_is_the_other_images_share():
    pixels, labels = drawn()
    images, targets = augmented(pixels, labels, seed=6, cutmix=1.0)
    foreign = (images != pixels.float()).any(dim=1)
    rows, columns = foreign[0].any(dim=1).sum().item(), foreign[0].any(dim=0).sum().item()
    assert foreign[0].sum().item() == rows * columns > 0
    assert targets[0, 7].item() == pytest.approx(rows * columns / 32**2)
    assert torch.equal(images[:, :, foreign[0]], pixels.flip(0).float()[:, :, foreign[0]])


def test_random_erasing_puts_noise_of_the_data_sets_own_spread_into_one_rectangle_of_each_image():
    pixels, labels = drawn(200)
    images, targets = augmented(pixels, labels, random_erasing=1.0)
    changed = ((images - pixels.float()).abs() > 0.01).any(dim=1)
    assert torch.equal(targets, labels)
    for erased in changed:
        assert erased.sum() == erased.any(dim=0).sum() * erased.any(dim=1).sum() > 0
    noise = images.permute(1, 0, 2, 3)[:, changed]
    preprocess = Preprocess()
    assert (noise.mean(dim=1) / 255).tolist() == pytest.approx(preprocess.mean, abs=0.01)
    assert (noise.std(dim=1) / 255).tolist() == pytest.approx(preprocess.std, rel=0.02)


def test_every_augmentation_at_once_repeats_under_its_seed():
    pixels, labels = drawn()
    fields = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5}
    first, again = augmented(pixels, labels, **fields), augmented(pixels, labels, **fields)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


class Fixed(nn.Module):
    """Answers every image with the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return type("Answer", (), {"logits": self.logits.expand(len(images), -1)})


def objective(kind, **fields):
    student, teacher = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 0.5, -0.2])
    stage = InputStage(Preprocess(), 32)
    judge = Classifier(Fixed(teacher), stage)
    return Distilled(Fixed(student), stage, judge, kind=kind, **fields), student, teacher


def test_soft_distillation_is_the_divergence_from_the_teacher_at_the_temperature():
    judged, student, teacher = objective("soft", weight=0.3, temperature=2.0)
    loss, logits = judged(torch.zeros(2, 3, 32, 32), torch.tensor([2, 2]))
    p, q = (teacher / 2).softmax(0), (student / 2).softmax(0)
    divergence = (p * (p / q).log()).sum() * 4
    expected = 0.7 * -student.log_softmax(0)[2] + 0.3 * divergence
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.equal(logits[0], student)


def test_hard_distillation_is_cross_entropy_against_the_teachers_decision():
    judged, student, _ = objective("hard", weight=0.5)
    loss, _ = judged(torch.zeros(2, 3, 32, 32), torch.tensor([2, 1]))
    own = -student.log_softmax(0)
    expected = 0.5 * (own[2] + own[1]) / 2 + 0.5 * own[0]
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it():
    logits = torch.randn(4, 10)
    assert soft_divergence(logits, logits, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_stays_in_evaluation_mode_and_learns_nothing():
    judged, _, _ = objective("soft")
    judged.train()
    assert judged.model.training
    assert not judged.teacher.training
    loss, _ = judged(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))
    loss.backward()
    assert judged.model.logits.grad is not None
    assert judged.teacher.model.logits.grad is None


def test_the_plain_objective_is_smoothed_cross_entropy_of_what_the_model_answers_the_raw_image(tiny_model):
    model = build(tiny_model).eval()
    stage = InputStage(Preprocess(), 32)
    pixels, labels = drawn()
    loss, logits = Plain(model, stage, 0.1)(pixels.float(), labels)
    assert torch.equal(logits, Classifier(model, stage)(pixels).logits)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.1).item())


@pytest.mark.parametrize("distill", ["soft", "hard"])
def test_distillation_trains(recipe, tiny_model, distill):
    teacher = recipe.replace(output_dir=recipe.output_dir / "teacher", epochs=4, augment=False, freqmerge=False)
    train.train(teacher, tiny_model)
    config = recipe.replace(teacher=teacher.checkpoint_path, distill=distill, epochs=4, augment=False)
    history = train.train(config, tiny_model)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.1
    told = load_checkpoint(config.checkpoint_path).manifest.training["teacher"]
    assert told["digest"] == load_checkpoint(teacher.checkpoint_path).manifest.digest


def test_a_teacher_that_is_no_checkpoint_is_refused(recipe, tiny_model, tmp_path):
    (tmp_path / "teacher.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated or of another format"):
        train.train(recipe.replace(teacher=tmp_path / "teacher.safetensors"), tiny_model)


def test_a_teacher_of_other_classes_is_refused(recipe, tiny_model, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, build(tiny_model.replace(num_classes=2)), class_names=["cat", "dog"], superclasses=[])
    with pytest.raises(WeightsError, match="expected a model of CIFAR-100 at 32 pixels, found 2 classes at 32 pixels"):
        train.train(recipe.replace(teacher=path), tiny_model)


def test_a_head_of_another_width_than_the_data_is_refused_before_training(recipe, tiny_model):
    with pytest.raises(ConfigError, match="num_classes: expected the 100 of CIFAR-100, found 10"):
        train.train(recipe, tiny_model.replace(num_classes=10))


def other(tiny_model, **changes):
    """Another model of the family, with weights unlike a fresh one's."""
    torch.manual_seed(9)
    return build(tiny_model.replace(**changes))


def test_timms_own_weights_fill_the_model_and_a_head_of_other_classes_starts_afresh(tiny_model, tmp_path):
    source = other(tiny_model, num_classes=1000)
    save_file({key: value.contiguous() for key, value in source.vit.state_dict().items()}, tmp_path / "vit.safetensors")
    model = build(tiny_model)
    head = model.vit.head.weight.clone()
    state = filled(model, tmp_path / "vit.safetensors").vit.state_dict()
    assert torch.equal(state["head.weight"], head)
    for key, value in source.vit.state_dict().items():
        assert key.startswith("head.") or torch.equal(state[key], value)


def test_a_checkpoint_of_ours_fills_the_model_with_its_head(tiny_model, tmp_path):
    source = other(tiny_model)
    save_checkpoint(tmp_path / "ours.safetensors", source)
    state = filled(build(tiny_model), tmp_path / "ours.safetensors").state_dict()
    assert all(torch.equal(state[key], value) for key, value in source.state_dict().items())


def test_the_position_embedding_is_resampled_to_the_models_grid(tiny_model, tmp_path):
    source = other(tiny_model, image_size=48)
    with torch.no_grad():  # positions that rise evenly from left to right do so on any grid
        source.vit.pos_embed[0, 1:] = torch.arange(6.0).repeat(6)[:, None]
    save_checkpoint(tmp_path / "larger.safetensors", source)
    positions = filled(build(tiny_model), tmp_path / "larger.safetensors").vit.pos_embed[0]
    assert torch.equal(positions[0], source.vit.pos_embed[0, 0])
    grid = positions[1:, 0].reshape(4, 4)
    assert torch.allclose(grid, grid[:1].expand(4, 4), atol=1e-5)
    assert (grid[0].diff() > 1).all()
    assert grid.mean().item() == pytest.approx(2.5, abs=1e-4)


def test_weights_of_another_architecture_are_refused_naming_the_first_difference(tiny_model, tmp_path):
    changed = {**tiny_model.backbone_args, "embed_dim": 96}
    save_checkpoint(tmp_path / "wide.safetensors", other(tiny_model, backbone_args=changed))
    with pytest.raises(WeightsError, match=r"tensors differ, first .*: expected .*48.*, found .*96"):
        filled(build(tiny_model), tmp_path / "wide.safetensors")


def test_starting_weights_that_are_missing_or_pickled_are_refused(tiny_model, tmp_path):
    with pytest.raises(WeightsError, match="found nothing at"):
        filled(build(tiny_model), tmp_path / "none.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="pickled weights are never opened"):
        filled(build(tiny_model), tmp_path / "weights.pth")


def test_a_backbone_without_published_weights_says_so(recipe, tiny_model):
    unpublished = tiny_model.replace(backbone="vit_small_patch16_36x1_224")
    with pytest.raises(WeightsError, match=r"no weights of vit_small_patch16_36x1_224 from the hub \(No pretrained"):
        train.train(recipe.replace(pretrained="hub"), unpublished)


def test_fine_tuning_starts_where_the_weights_left_off(recipe, tiny_model):
    first = recipe.replace(output_dir=recipe.output_dir / "first", epochs=6, augment=False)
    learned = train.train(first, tiny_model)
    config = recipe.replace(pretrained=str(first.checkpoint_path), epochs=1, augment=False, lr=1e-4)
    assert train.train(config, tiny_model)[0]["train_loss"] < learned[0]["train_loss"] - 0.5


def test_every_part_of_a_recipe_trains_together(recipe, tiny_model):
    config = recipe.replace(
        mixup=0.8,
        cutmix=1.0,
        random_erasing=0.25,
        rand_augment="rand-m5-n1-mstd0.5",
        workers=0,
        drop_path=0.1,
        ema_decay=0.9,
        layer_decay=0.8,
        grad_checkpoint=True,
        optimizer="lamb",
        schedule="poly",
        decay_rate=1.0,
        epochs=2,
    )
    history = train.train(config, tiny_model)
    assert all(0 < entry["train_loss"] < 6 for entry in history)
    assert load_checkpoint(config.checkpoint_path).manifest.training["config"]["mixup"] == 0.8


COMPILED = """
import sys
from functools import partialmethod
from torch import nn
from training import train

nn.Module.compile = partialmethod(nn.Module.compile, backend="eager")  # traced as ever; kernels would take a minute
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(data_dir, tmp_path):
    histories = []
    for way in ("compile", "no_compile"):
        flags = f"--data_dir {data_dir} --output_dir {tmp_path / way} --{way} --epochs 1 --batch_size 40 --lr 3e-3"
        flags += " --warmup_epochs 0 --mixup 0.8 --image_size 32 --merge_layers 1 --backbone vit_tiny_patch16_224"
        flags += " --backbone_args patch_size=8 embed_dim=48 depth=3 num_heads=3 --device cpu --threads 1"
        done = forked.run("-c", COMPILED, *flags.split())
        assert done.returncode == 0, done.stderr
        histories.append(json.loads((tmp_path / way / "logs" / "training_history.json").read_text()))
    ((compiled,), (plain,)) = histories
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
    assert compiled["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-4)


def test_layer_decay_slows_the_first_blocks_most(recipe, tiny_model):
    run = train.Run(recipe.replace(layer_decay=0.5), task.freqmerge(recipe.replace(layer_decay=0.5), tiny_model))
    rates = {
        name: group["lr_scale"]
        for group in run.optimizer.param_groups
        for name, parameter in run.model.vit.named_parameters()
        if any(parameter is own for own in group["params"])
    }
    assert rates["head.weight"] == 1
    assert (
        rates["blocks.2.mlp.fc1.weight"] == 2 * rates["blocks.1.mlp.fc1.weight"] == 4 * rates["blocks.0.mlp.fc1.bias"]
    )
    assert len(rates) == len(list(run.model.parameters()))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", (0.5, 1.0, 0.5)),
        ("constant", (0.5, 1.0, 1.0)),
        ("step", (0.5, 1.0, 0.1)),
    ],
)
def test_a_schedule_warms_up_and_then_follows_its_name(schedule, rates):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    config = TrainConfig(epochs=10, schedule=schedule, warmup_epochs=0.5, min_lr=0.0, decay_epochs=5)
    here = train._schedule(config, optimizer, steps=20)
    found = []
    for step in (5, 10, 100):  # half of the warm-up, its end, half of the run
        here.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(rates, abs=0.01)


def test_checkpointed_gradients_are_those_without(tiny_model):
    pixels, labels = drawn()
    for config in (tiny_model, tiny_model.replace(keep_rate=1.0)):
        torch.manual_seed(0)
        judged = Plain(build(config), InputStage(Preprocess(), 32)).train()
        grads = []
        for enable in (False, True):
            judged.model.set_grad_checkpointing(enable)
            judged.zero_grad()
            judged(pixels.float(), labels).loss.backward()
            grads.append([parameter.grad.clone() for parameter in judged.parameters()])
        assert all(torch.equal(kept, again) for kept, again in zip(*grads, strict=True))


def test_checkpointing_keeps_fewer_activations(tiny_model):
    pixels, labels = drawn()
    kept = {}
    for enable in (False, True):
        torch.manual_seed(0)
        judged = Plain(build(tiny_model), InputStage(Preprocess(), 32)).train()
        judged.model.set_grad_checkpointing(enable)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            judged(pixels.float(), labels)
        kept[enable] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_the_deterministic_flag_sets_what_the_seed_lists(recipe):
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        train.prepare(recipe)
        assert torch.backends.cudnn.benchmark
        train.prepare(recipe.replace(deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, before[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rand_augment": "randm9"}, "rand_augment: expected timm's notation"),
        ({"rand_augment": "augmix-m5"}, "rand_augment: expected timm's notation"),
        ({"batch_size": 33, "mixup": 0.8}, r"mixup: expected 0 where batch_size is odd \(33\)"),
        ({"optimizer": "adamv"}, r"optimizer: expected one of timm\.optim\.list_optimizers\(\)"),
        ({"init": "mimetic", "pretrained": "hub"}, "pretrained: expected none where init is mimetic"),
        ({"distill": "warm"}, "distill: expected 'soft' or 'hard', found 'warm'"),
        ({"layer_decay": 1.5}, "layer_decay: expected above 0, at most 1, found 1.5"),
        ({"val_fraction": 1}, "val_fraction: expected 0 to below 1, found 1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_naming_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**fields)


def test_pretrained_alone_means_the_hub_and_takes_a_file_as_well():
    from training import cli

    parser = cli.parser("train", "Train.", TrainConfig)
    for words, expected in (([], {}), (["--pretrained"], "hub"), (["--pretrained", "a.safetensors"], "a.safetensors")):
        given = cli.given(TrainConfig, parser.parse_args(words))
        assert given == (expected or {}) or given == {"pretrained": expected}


def test_an_output_folder_that_cannot_be_written_is_refused_before_any_data_is_read(recipe, tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    config = recipe.replace(output_dir=tmp_path / "file", data_dir=tmp_path / "nowhere")
    with pytest.raises(SaveError, match="output_dir: expected a folder that can be written, found .*file .*choose"):
        train.train(config, tiny_model)
