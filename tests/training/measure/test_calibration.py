import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model import build
from training.measure.calibration import LARGEST, SMALLEST, fit_certainty, fit_temperature, fold_temperature
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


def test_a_calibrated_models_answers_are_certain_from_one_half_on():
    found = fit_certainty(*drawn(1.0))
    assert found.certain_from == pytest.approx(0.5, abs=0.05)
    assert found.right_of_certain > 0.5 > found.right_of_others


def test_an_overconfident_models_answers_are_certain_later():
    logits, labels = drawn(1.0)
    assert fit_certainty(2 * logits, labels).certain_from > fit_certainty(logits, labels).certain_from + 0.1


@given(st.integers(0, 1000), st.integers(1, 40))
def test_no_other_threshold_makes_fewer_mistakes_and_at_most_half_below_it_are_right(seed, count):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 4, (count, 3), generator=generator).float()  # ties
    labels = torch.randint(0, 3, (count,), generator=generator)
    found = fit_certainty(logits, labels)
    confidence, best = logits.double().softmax(dim=1).max(dim=1)
    right = best == labels

    def mistakes(threshold):
        return int((right != (confidence >= threshold)).sum())

    steps = {0, 10_000, *(int(value * 10_000) + more for value in confidence for more in (0, 1))}
    fewest = min(mistakes(step / 10_000) for step in steps)
    assert mistakes(found.certain_from) == fewest
    assert all(step / 10_000 <= found.certain_from for step in steps if mistakes(step / 10_000) == fewest)
    certain = confidence >= found.certain_from
    assert found.certain == pytest.approx(certain.double().mean().item())
    for chosen, share, fits in (
        (right[certain], found.right_of_certain, lambda share: share >= 0.5),
        (right[~certain], found.right_of_others, lambda share: share <= 0.5),
    ):
        assert share is None if not len(chosen) else share == pytest.approx(chosen.double().mean().item())
        assert share is None or fits(share)


def test_where_every_answer_is_right_all_are_certain_and_where_none_is_none_are():
    logits, labels = torch.eye(5), torch.arange(5)
    lowest = math.floor(1e4 * math.e / (math.e + 4)) / 1e4
    assert fit_certainty(logits, labels) == (lowest, 1.0, 1.0, None)
    assert fit_certainty(-logits, labels) == (1.0, 0.0, None, 0.0)


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
