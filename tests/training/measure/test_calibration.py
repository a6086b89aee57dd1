import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model import build
from training.measure.calibration import LARGEST, SMALLEST, fit_temperature, fold_temperature
from training.measure.scores import calibration_error


def drawn(temperature, count=20_000):
    """Logits of a model whose answers are right as often as it says when they are divided by `temperature`."""
    generator = torch.Generator().manual_seed(2)
    honest = 2 * torch.randn(count, 10, generator=generator)
    labels = torch.multinomial(honest.softmax(dim=1), 1, generator=generator)[:, 0]
    return honest * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found_and_calibrates(temperature):
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    assert calibration_error(logits / found, labels) < 0.015


@given(st.integers(0, 1000), st.floats(0.2, 5.0))
def test_no_other_temperature_has_a_smaller_cross_entropy(seed, other):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(30, 4, generator=generator), torch.randint(0, 4, (30,), generator=generator)
    found = fit_temperature(logits, labels)
    assert SMALLEST <= found <= LARGEST
    losses = [F.cross_entropy(logits.double() / each, labels).item() for each in (found, found * other)]
    assert losses[0] <= losses[1] + 1e-9 or not SMALLEST <= found * other <= LARGEST


def test_where_every_answer_is_right_or_wrong_the_temperature_stops_at_its_limits():
    logits, labels = torch.eye(5), torch.arange(5)
    assert fit_temperature(logits, labels) == pytest.approx(SMALLEST)
    assert fit_temperature(-logits, labels) == pytest.approx(LARGEST)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_folding_divides_the_logits_and_nothing_else(tiny_model, backbone):
    torch.manual_seed(0)
    model = build(tiny_model.replace(backbone=backbone)).eval().requires_grad_(False)
    images = torch.randn(3, 3, 32, 32)
    before = model(images)
    fold_temperature(model, 2.5)
    after = model(images)
    assert torch.allclose(after.logits, before.logits / 2.5, atol=1e-6)
    assert torch.equal(after.source_maps, before.source_maps)
