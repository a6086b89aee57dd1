import pytest
import torch

from model import ModelConfig, load_checkpoint, macs, save_checkpoint
from model.checkpoint import read_manifest
from model.errors import BackboneError, CheckpointError, ConfigError
from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from tests.model.tiny import images, tiny
from training import train
from training.config import TrainConfig
from training.data import dataset
from training.data.cifar import Cifar
from training.dynamicvit import command, files, task
from training.dynamicvit.loss import Answer, LossWeights, kl_loss, parts, ratio_loss, taught, token_loss
from training.dynamicvit.model import (
    DynamicConfig,
    DynamicViT,
    Masked,
    Predictor,
    Pruned,
    create,
    masking_bias,
    tokens_left,
)
from training.dynamicvit.task import DynamicRecipe
from training.errors import ResumeError
from training.measure import records
from training.run import arithmetic, state
from training.studies import reports


def dynamic(rho=0.7, layers=(), opinion=4, **changes):
    """A tiny DynamicViT in evaluation mode; predictors with a large opinion keep or drop, others draw lots."""
    base = tiny(**changes)
    model = DynamicViT(base, DynamicConfig(rho=rho, predictor_layers=layers))
    with torch.no_grad():
        for parameter in model.predictors.parameters():
            if parameter.ndim > 1:
                parameter.mul_(opinion)
    return model.eval()


AVERAGING = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "global_pool": "avg", "class_token": False}
ATTENDING = {**AVERAGING, "global_pool": "map"}
RELEASED = {**AVERAGING, "class_token": True, "fc_norm": False}
"""As the ViT-Small that ships: a class token that is not pooled, and the norm before the pooling."""


# Where and how many


def test_predictors_stand_at_the_quarters_of_the_depth_unless_told_otherwise():
    assert DynamicConfig().layers(12) == (3, 6, 9)
    assert [DynamicConfig().layers(depth) for depth in (4, 3, 2)] == [(1, 2, 3), (1, 2), (1,)]
    assert DynamicConfig(predictor_layers=(0, 5)).layers(12) == (0, 5)
    assert dynamic().layers == (1, 2, 3)


def test_a_vit_small_keeps_137_96_and_67_patches_at_rho_0_7():
    config = DynamicConfig()
    assert [tokens_left(196, share) for share in config.shares(12)] == [137, 96, 67]
    assert tokens_left(100, 0.7**2) == 49, "not 48 by the rounding of 0.7²"
    assert tokens_left(4, 0.01) == 1
    assert dynamic().schedule == (36, 25, 17, 12)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rho": 0.0}, "rho: expected above 0, at most 1, found 0.0"),
        ({"rho": 1.2}, "rho: expected above 0, at most 1, found 1.2"),
        ({"predictor_layers": (6, 3)}, "predictor_layers: expected ascending block indices"),
    ],
)
def test_bad_settings_are_refused_by_name(values, told):
    with pytest.raises(ConfigError, match=told):
        DynamicConfig(**values)


def test_a_predictor_outside_the_depth_is_refused():
    with pytest.raises(ConfigError, match=r"predictor_layers: expected block indices 0\.\.3 .* found \[4\]"):
        dynamic(layers=(1, 4))


def test_pooling_that_cannot_leave_tokens_out_is_refused():
    with pytest.raises(BackboneError, match="cannot leave masked tokens out of 'max' pooling"):
        dynamic(backbone_args={**AVERAGING, "global_pool": "max"})


# The answer


@pytest.mark.parametrize("arguments", [None, AVERAGING, ATTENDING, RELEASED])
def test_at_rho_1_inference_is_the_plain_model_to_the_bit(arguments):
    model = dynamic(rho=1.0, **({"backbone_args": arguments} if arguments else {}))
    answer = model(images(3))
    assert isinstance(answer, Pruned)
    assert torch.equal(answer.logits, model.vit(images(3)))
    assert torch.equal(answer.kept_patches, torch.arange(36).expand(3, -1))


def test_inference_removes_the_tokens_that_the_predictors_would_rather_drop():
    model, batch = dynamic(layers=(2,), rho=0.5), images(3)
    seen = []
    model.predictors[0].register_forward_hook(lambda module, given, found: seen.append(found))
    lengths = []
    for block in model.vit.blocks:
        block.register_forward_hook(lambda module, given, found: lengths.append(found.shape[1]))
    answer = model(batch)
    assert lengths == [37, 37, 19, 19]
    expected = [sorted(range(36), key=lambda t: -row[t, 1])[:18] for row in seen[0]]
    assert answer.kept_patches.tolist() == [sorted(chosen) for chosen in expected]


def removing(model, image, masks):
    """The slow twin of masking: tokens that a stage's mask drops are cut out of the sequence of one image."""
    vit, there, stage = model.vit, torch.arange(36), 0
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image)))
    for layer, block in enumerate(vit.blocks):
        if layer in model.layers:
            stays = masks[stage][there] > 0
            prefix = torch.ones(vit.num_prefix_tokens, dtype=torch.bool)
            x, there, stage = x[:, torch.cat([prefix, stays])], there[stays], stage + 1
        x = block(x)
    return vit.forward_head(vit.norm(x)), vit.norm(x)[0, vit.num_prefix_tokens :], there


@pytest.mark.parametrize("arguments", [None, AVERAGING, ATTENDING, RELEASED])
def test_masking_while_training_answers_like_removing_the_same_tokens(arguments):
    model = dynamic(opinion=1, **({"backbone_args": arguments} if arguments else {})).train()
    batch = images(4)
    torch.manual_seed(5)
    answer = model(batch)
    assert isinstance(answer, Masked)
    for one in range(4):
        logits, tokens, there = removing(model, batch[one : one + 1], [mask[one] for mask in answer.masks])
        assert 0 < len(there) < 36
        torch.testing.assert_close(answer.logits[one], logits[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(answer.tokens[one, there], tokens, rtol=1e-3, atol=1e-3)


def test_a_token_dropped_by_one_stage_never_comes_back():
    answer = dynamic(opinion=1).train()(images(8))
    first, second, third = answer.masks
    assert set(torch.cat(answer.masks).unique().tolist()) == {0.0, 1.0}
    assert bool((second <= first).all() and (third <= second).all())
    assert first.sum() > second.sum() > third.sum()


def test_the_draw_of_training_follows_torchs_seed():
    model = dynamic(opinion=1).train()
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(model(images(4)).masks[0])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_images_in_a_batch_do_not_influence_each_other():
    model, batch = dynamic(), images(5)
    together = model(batch)
    for one in range(5):
        alone = model(batch[one : one + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[one], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.kept_patches[0], together.kept_patches[one])


# The masked attention and its gradient


def test_the_bias_is_the_papers_masked_softmax_in_value_and_gradient():
    torch.manual_seed(3)
    logits, values = torch.randn(2, 3, 7, 7).double(), torch.randn(2, 3, 7, 5).double()
    wanted = torch.randn(2, 3, 7, 5).double()
    start = (torch.rand(2, 7) < 0.5).double()

    def explicit(mask):
        """The paper's section 3.3, letter by letter."""
        own = torch.eye(7).double()
        shown = own + (1 - own) * mask[:, None, None, :]
        weight = logits.exp() * shown
        return weight / weight.sum(dim=3, keepdim=True)

    def biased(mask):
        return (logits + masking_bias(mask, torch.float64)).softmax(dim=3)

    found = {}
    for name, attention in (("explicit", explicit), ("biased", biased)):
        mask = start.clone().requires_grad_()
        answer = attention(mask) @ values
        (gradient,) = torch.autograd.grad((answer * wanted).sum(), mask)
        found[name] = (answer.detach(), gradient)
    torch.testing.assert_close(found["biased"][0], found["explicit"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["biased"][1], found["explicit"][1], rtol=1e-4, atol=1e-4)
    assert found["biased"][1][start == 0].abs().min() > 1e-3, "a dropped token still learns what it would have changed"


def test_an_image_that_loses_every_token_still_has_finite_logits_and_gradients():
    for arguments in (None, AVERAGING, ATTENDING, RELEASED):
        model = dynamic(**({"backbone_args": arguments} if arguments else {})).train()
        with torch.no_grad():
            for predictor in model.predictors:
                predictor.decide[-1].bias.copy_(torch.tensor([200.0, -200.0]))
        answer = model(images(2))
        assert bool((answer.masks[0] == 0).all())
        parts(answer, taught(model.vit, images(2)), answer.logits.sum(), model.shares, LossWeights()).total.backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in found)


def test_the_global_half_of_a_predictor_averages_only_the_tokens_that_are_left():
    torch.manual_seed(0)
    predictor, tokens = Predictor(16), torch.randn(2, 9, 16)
    mask = torch.zeros(2, 9)
    mask[:, :5] = 1
    other = tokens.clone()
    other[:, 5:] += 10
    torch.testing.assert_close(predictor(tokens, mask)[:, :5], predictor(other, mask)[:, :5])
    torch.testing.assert_close(predictor(tokens, mask)[:, :5], predictor(tokens[:, :5], torch.ones(2, 5)))
    torch.testing.assert_close(predictor(tokens, mask).exp().sum(dim=2), torch.ones(2, 9))


# The losses


def test_the_ratio_loss_is_the_mean_squared_miss_over_images_and_stages():
    masks = [torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])]
    expected = ((0.5 - 0.7) ** 2 + (1 - 0.7) ** 2 + (0.25 - 0.49) ** 2 + 0.49**2) / 4
    assert float(ratio_loss(masks, (0.7, 0.49))) == pytest.approx(expected)


def test_the_divergence_is_zero_for_equal_logits_and_the_teachers_cross_entropy_less_its_entropy_else():
    ours, theirs = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert float(kl_loss(ours, ours + 3)) == pytest.approx(0, abs=1e-6)
    p, q = theirs.softmax(1), ours.softmax(1)
    assert float(kl_loss(ours, theirs)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_the_token_loss_looks_only_at_the_tokens_that_are_left():
    ours, theirs = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 3.0], [2.0, 0.0], [50.0, 50.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert float(token_loss(ours, theirs, mask)) == pytest.approx((1 + 9 + 4 + 0) / 4)
    assert float(token_loss(ours, theirs, torch.zeros(1, 3))) == 0.0


def test_the_loss_weighs_its_parts_as_the_paper_does():
    torch.manual_seed(2)
    answer = Masked(torch.randn(4, 6), torch.randn(4, 9, 8), ((torch.rand(4, 9) < 0.6).float(),))
    teacher = Answer(torch.randn(4, 6), torch.randn(4, 9, 8))
    found = parts(answer, teacher, torch.tensor(1.25), (0.7,), LossWeights())
    expected = 1.25 + 2.0 * found.ratio + 0.5 * found.kl + 0.5 * found.tokens
    assert float(found.total) == pytest.approx(float(expected))
    assert min(float(found.ratio), float(found.kl), float(found.tokens)) > 0


def test_every_predictor_learns_from_the_loss():
    model = dynamic().train()
    answer = model(images(4))
    parts(answer, taught(model.vit, images(4)), answer.logits.sum() * 0, model.shares, LossWeights()).total.backward()
    for predictor in model.predictors:
        assert all(float(parameter.grad.abs().max()) > 0 for parameter in predictor.parameters())


@pytest.mark.parametrize("arguments", [None, AVERAGING, ATTENDING, RELEASED])
def test_mixed_precision_trains_with_the_loss_and_gradients_of_float32(arguments):
    model = dynamic(opinion=1, **({"backbone_args": arguments} if arguments else {})).train()
    found = []
    for mixed in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            answer = model(images(4))
            classes = torch.nn.functional.cross_entropy(answer.logits.float(), torch.arange(4))
            told = parts(answer, taught(model.vit, images(4)), classes, model.shares, LossWeights())
        told.total.backward()
        found.append((float(told.total.detach()), model.predictors[0].decide[0].weight.grad.clone()))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.05)
    assert torch.nn.functional.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), dim=0) > 0.9


# Cost


def test_a_vit_small_costs_2_98_gmacs_at_rho_0_7_and_each_predictor_has_241_250_parameters():
    model = create(ModelConfig(), DynamicConfig())
    assert model.schedule == (196,) * 3 + (137,) * 3 + (96,) * 3 + (67,) * 3
    assert macs.count_macs(model, 224) == pytest.approx(2.98e9, rel=0.002)
    assert macs.count_macs(create(ModelConfig(), DynamicConfig(rho=1.0)), 224) == macs.count_macs(model.vit, 224)
    assert macs.count_parameters(model) == 21_704_164 + 3 * 241_250


# The run


@pytest.fixture(scope="module")
def start(data_dir, tmp_path_factory):
    """A plain ViT trained on the stand-in for a while."""
    vit = ModelConfig(
        backbone="vit_tiny_patch16_224",
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
        image_size=32,
        merge_layers=(1,),
    )
    config = TrainConfig(
        data_dir=data_dir,
        output_dir=tmp_path_factory.mktemp("start"),
        freqmerge=False,
        epochs=4,
        batch_size=40,
        lr=3e-3,
        device="cpu",
    )
    train.train(config, vit)
    return config.checkpoint_path


@pytest.fixture
def slow_and_fast(start):
    """On the stand-in the backbone may move."""
    return DynamicRecipe(ckpt=start, backbone_lr_scale=0.3)


def tensors(config):
    return files.load(config.checkpoint_path).model.state_dict()


def test_training_lowers_the_loss_and_learns_how_many_tokens_to_keep(recipe, slow_and_fast):
    config, settings = recipe.replace(epochs=6, augment=False), DynamicConfig(rho=0.7)
    torch.manual_seed(config.seed)
    fresh = task.task(config, settings, LossWeights(), slow_and_fast)
    history = command.train(config, settings, LossWeights(), slow_and_fast)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.3
    loaded = files.load(config.checkpoint_path)
    assert loaded.manifest.training["dynamicvit"] == {"rho": 0.7, "predictor_layers": []}
    assert loaded.manifest.config.keep_rate == 1.0
    pixels = dataset.source(recipe.data_dir).load("test", 32).pixels.float()
    missed = []
    for model in (fresh.model, loaded.model):
        torch.manual_seed(0)
        with torch.no_grad():
            answer = model.train()(fresh.objective.stage.normalise(pixels))
        missed.append(float(ratio_loss(answer.masks, model.shares)))
    assert missed[1] < missed[0] / 2


def test_the_backbone_learns_at_a_hundredth_of_the_rate_and_the_teacher_not_at_all(recipe, start):
    recipe = recipe.replace(epochs=1, warmup_epochs=0.0)
    made = task.task(recipe, DynamicConfig(), LossWeights(), DynamicRecipe(ckpt=start))
    teacher = {key: value.clone() for key, value in made.objective.teacher.state_dict().items()}
    here = train.Run(recipe, made)
    rates = {group["lr_scale"]: group["lr"] for group in here.optimizer.param_groups}
    counted = sum(p.numel() for group in here.optimizer.param_groups for p in group["params"])
    assert counted == macs.count_parameters(made.model)
    here.go()
    made.objective.train()
    assert made.model.training
    assert not any(module.training for module in made.objective.teacher.modules())
    assert set(rates) == {0.01, 1.0}
    ends = {group["lr_scale"]: group["lr"] for group in here.optimizer.param_groups}
    assert ends[0.01] == pytest.approx(0.01 * ends[1.0])
    assert all(torch.equal(value, teacher[key]) for key, value in made.objective.teacher.state_dict().items())


def test_a_killed_run_resumes_to_the_same_numbers(recipe, slow_and_fast):
    recipe, settings = recipe.replace(epochs=2), (DynamicConfig(), LossWeights(), slow_and_fast)
    whole = command.train(recipe, *settings)
    broken = recipe.replace(output_dir=recipe.output_dir / "killed", save_every_s=1e-9)
    train.prepare(broken)
    run = train.Run(broken, task.task(broken, *settings))
    steps = iter(range(13))  # 9 steps an epoch: dies in the second

    def dying(batch, step=run._step):
        if next(steps) == 12:
            raise KeyboardInterrupt
        return step(batch)

    run._step = dying
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert command.train(broken.replace(resume=True), *settings) == whole
    left, right = tensors(recipe), tensors(broken)
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_short_epochs_from_a_released_checkpoint_with_average_pooling_learn_in_explicit_bfloat16_and_resume(
    data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(arithmetic, "has_bf16", lambda: True)
    path = tmp_path / "released.safetensors"
    torch.manual_seed(1)
    averaging = tiny(num_classes=100, backbone_args=RELEASED, keep_rate=0.7)
    save_checkpoint(path, averaging, dtype=torch.float16)
    flags = (
        f"--ckpt {path} --data_dir {data_dir} --output_dir {tmp_path} --device cpu --batch_size 40 --lr 3e-3".split()
    )
    command.main([*flags, "--epochs", "2", "--epoch_images", "100", "--val_fraction", "0"])
    (entry,) = records.read("dynamicvit", tmp_path / "results")
    assert (entry["epochs"], entry["epoch_images"], entry["steps"], entry["images_seen"]) == (2, 80, 4, 160)
    assert "bfloat16, explicit attention" in capsys.readouterr().err
    loaded = files.load(tmp_path / "checkpoints" / "best_model.safetensors")
    assert loaded.manifest.config == averaging.config.replace(keep_rate=1.0)
    torch.manual_seed(0)
    fresh = files.start(path, loaded.model.dynamic)[1].state_dict()
    learned = loaded.model.state_dict()
    assert all(not torch.equal(learned[key], fresh[key]) for key in fresh if key.endswith("features.1.weight"))
    command.main([*flags, "--epochs", "2", "--epoch_images", "100", "--val_fraction", "0", "--resume"])
    (again,) = records.read("dynamicvit", tmp_path / "results")
    assert (again["digest"], again["seconds"]) == (entry["digest"], entry["seconds"])


def test_a_run_does_not_resume_from_another_rho(recipe, slow_and_fast):
    config = recipe.replace(epochs=1)
    command.train(config, DynamicConfig(), LossWeights(), slow_and_fast)
    with pytest.raises(ResumeError, match=r"rho: saved 0\.7, given 0\.5"):
        command.train(config.replace(resume=True), DynamicConfig(rho=0.5), LossWeights(), slow_and_fast)


def test_gradient_checkpointing_gives_the_same_gradients(start, recipe):
    found = []
    for wanted in (False, True):
        made = task.task(
            recipe.replace(grad_checkpoint=wanted), DynamicConfig(), LossWeights(), DynamicRecipe(ckpt=start)
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in made.model.predictors.parameters():
                parameter.copy_(torch.randn_like(parameter) / 10)
        batch = dataset.source(recipe.data_dir).load("test", 32).take(torch.arange(10))
        made.objective.train()(batch.pixels.float(), batch.labels).loss.backward()
        found.append({name: parameter.grad for name, parameter in made.model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_checkpoint_keeps_answers_and_may_be_read_with_another_rho(tmp_path):
    model = dynamic(rho=0.5, layers=(2,))
    path = tmp_path / "dynamic.safetensors"
    files.save(path, model, {"val_top1": 0.5}, {"epoch": 3}, Preprocess(), Cifar.classes)
    loaded = files.load(path)
    assert loaded.manifest.training["epoch"] == 3
    assert torch.equal(loaded.model(images(2)).logits, model(images(2)).logits)
    assert files.load(path, rho=1.0).model.schedule == (36, 36, 36, 36)


def test_a_checkpoint_without_predictors_and_an_altered_one_are_refused(tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_checkpoint(plain, tiny())
    with pytest.raises(CheckpointError, match=r"expected a DynamicViT, found 'plain' without predictors; train them"):
        files.load(plain)
    path = tmp_path / "dynamic.safetensors"
    files.save(path, dynamic(), {}, {}, Preprocess(), Cifar.classes)
    with pytest.raises(CheckpointError, match="tensors differ, first predictors"):
        load_checkpoint(path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="were changed after saving"):
        files.load(path)


def test_a_start_of_another_native_size_is_refused(start, recipe):
    with pytest.raises(ConfigError, match="native_size: expected 32, .* found 28"):
        task.task(recipe.replace(native_size=28), DynamicConfig(), LossWeights(), DynamicRecipe(ckpt=start))


def test_the_command_trains_measures_and_records_and_with_resume_measures_again(start, data_dir, tmp_path, capsys):
    flags = (
        f"--ckpt {start} --data_dir {data_dir} --output_dir {tmp_path} --epochs 1 "
        "--batch_size 60 --threads 1 --device cpu --rho 0.6 --predictor_layers 1 2 --ratio_weight 3"
    ).split()
    command.main(flags)
    shown = capsys.readouterr().out
    (entry,) = records.read("dynamicvit", tmp_path / "results")
    loaded = files.load(tmp_path / "checkpoints" / "best_model.safetensors")
    assert entry["digest"] == loaded.manifest.digest
    assert entry["start"]["digest"] == read_manifest(start).digest
    assert (entry["rho"], entry["predictor_layers"], entry["epochs"], entry["images"]) == (0.6, [1, 2], 1, 100)
    assert (entry["epoch_images"], entry["steps"], entry["images_seen"]) == (360, 6, 360)
    assert entry["seconds"] == state.facts(tmp_path / "checkpoints" / "last_state.safetensors")["progress"]["seconds"]
    assert f"best epoch 1 of 1; 360 images, 6 steps in {reports.duration(entry['seconds'])}" in shown
    assert entry["losses"] == {"ratio_weight": 3.0, "kl_weight": 0.5, "token_weight": 0.5}
    assert entry["schedule"] == [16, 9, 5]
    assert entry["macs"] == macs.count_macs(loaded.model, 32)
    images_there = dataset.source(data_dir).load("test", 32)
    stage = InputStage(loaded.manifest.preprocess, 32)
    with torch.no_grad():
        right = loaded.model(stage(images_there.pixels)).logits.argmax(dim=1) == images_there.labels
    assert entry["top1"] == pytest.approx(float(right.float().mean()))
    assert f"top-1                 {entry['top1']:8.2%}" in shown
    command.main([*flags, "--resume", "--benchmark", "--batch_sizes", "2", "--repeats", "3"])
    (again,) = records.read("dynamicvit", tmp_path / "results")
    assert again["seconds"] == entry["seconds"] > 0
    assert (again["digest"], again["top1"]) == (entry["digest"], entry["top1"])
    assert [row["batch_size"] for row in again["throughput"]] == [2]
