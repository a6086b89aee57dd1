import math

import pytest
import torch

from model import ModelConfig, build
from model.errors import ConfigError
from tests.model.merging.twins import fft_energy
from training.measure import picture_statistics
from training.measure.picture_statistics import ENERGIES, FIRST_BLOCK, STATISTICS


def small(**changes):
    return ModelConfig(
        backbone="vit_tiny_patch16_224",
        backbone_args={"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3},
        image_size=32,
        merge_layers=(2, 3),
        scoring="none",
    ).replace(**changes)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build(small()).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def statistics(model, images):
    return dict(zip(STATISTICS, picture_statistics.read(model, images, model.stem(images)).T, strict=True))


def test_the_energies_are_those_of_the_tokens_that_enter_the_first_merging_block(model, images):
    entered = []
    model.vit.blocks[2].norm1.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.inference_mode():
        model(images)
    tokens = entered[0][:, 1:].double()
    found = statistics(model, images)
    mean = fft_energy(tokens.mean(dim=2, keepdim=True), (8, 8), 2).mean(dim=1)
    energy = fft_energy(tokens, (8, 8), 2).mean(dim=1)
    variance = (tokens - tokens.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2))
    torch.testing.assert_close(found["lfgm_energy"].double(), mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(found["energy"].double(), energy, rtol=1e-4, atol=0)
    torch.testing.assert_close(found["energy_share"].double(), energy / (variance + 1e-6), rtol=1e-4, atol=0)


def test_the_first_block_tells_its_attention_from_the_class_token_and_the_tokens_that_leave_it(model, images):
    block, seen = model.vit.blocks[0], {}
    block.attn.qkv.register_forward_hook(lambda _, __, output: seen.update(qkv=output))
    block.register_forward_hook(lambda _, __, output: seen.update(tokens=output))
    with torch.inference_mode():
        model(images)
    query, key, _ = seen["qkv"].unflatten(2, (3, 3, 16)).unbind(2)
    after = seen["tokens"][:, 1:]
    found = statistics(model, images)
    for i in range(len(images)):
        per_head = [(query[i, 0, head] @ key[i, :, head].T / 4).softmax(dim=0) for head in range(3)]
        shares = sum(per_head)[1:] / sum(per_head)[1:].sum()
        expected = -sum(float(share) * math.log(share) for share in shares) / math.log(64)
        assert float(found["attention_entropy"][i]) == pytest.approx(expected, rel=1e-4)
        variance = (after[i] - after[i].mean(dim=0)).square().mean()
        assert float(found["token_variance"][i]) == pytest.approx(float(variance), rel=1e-4)
        assert float(found["token_norm"][i]) == pytest.approx(float(after[i].norm(dim=1).mean()), rel=1e-4)


def test_even_attention_has_an_entropy_of_one_and_a_single_patch_of_zero():
    even, single = torch.full((1, 16), 0.01), torch.zeros(1, 16)
    single[0, 3] = 0.4
    assert picture_statistics.entropy(even).item() == pytest.approx(1)
    assert picture_statistics.entropy(single).item() == 0


def test_under_autocast_the_energies_are_still_reduced_in_float32(model):
    patches = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(2))
    exact = picture_statistics.energies(model, patches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(picture_statistics.energies(model, patches), exact)


def test_a_picture_has_the_same_statistics_alone_and_in_a_batch(model, images):
    together, alone = statistics(model, images), statistics(model, images[2:3])
    assert set(together) == {*ENERGIES, *FIRST_BLOCK}
    for name, values in together.items():
        torch.testing.assert_close(values[2:3], alone[name], rtol=1e-4, atol=0)


def test_where_block_zero_merges_nothing_is_known_before(images):
    model = build(small(merge_layers=(0, 2))).eval()
    with pytest.raises(ConfigError, match="merge_layers: expected blocks from 1 on, found 0"):
        statistics(model, images)
