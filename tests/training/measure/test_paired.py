import math

import numpy as np
import pytest
import torch

from model.labels import CLASS_NAMES, SUPERCLASSES
from training.measure.confusion import confusion, members, within_superclass, worst_pairs
from training.measure.paired import bootstrap, compare, confirm, holm, mcnemar, standard_error
from training.measure.scores import answers, calibration_error, scores


def binomial(wins, losses):
    """Written out term by term."""
    n, k = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


@pytest.mark.parametrize(("wins", "losses"), [(3, 8), (8, 3), (40, 41), (100, 30)])
def test_mcnemar_equals_the_sum_of_binomial_terms(wins, losses):
    assert mcnemar(wins, losses) == pytest.approx(binomial(wins, losses), rel=1e-12)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (9, 1, 2 * (1 + 10) / 2**10),
    ],
)
def test_mcnemar_is_the_two_sided_binomial_test_of_the_images_that_only_one_gets_right(wins, losses, p):
    assert mcnemar(wins, losses) == pytest.approx(p, rel=0.01)


def test_mcnemar_stays_exact_for_every_image_of_the_test_set():
    assert mcnemar(5000, 5000) == 1.0
    assert mcnemar(5100, 4900) == pytest.approx(0.04659, abs=5e-4)  # normal: z = 199 / 100
    assert mcnemar(10_000, 0) == 0.0  # 2 / 2**10000 is below the smallest float


def test_the_bootstrap_interval_has_the_width_that_the_normal_approximation_gives():
    differences = np.repeat([1.0, -1.0, 0.0], [300, 200, 9500])
    low, high = bootstrap(differences)
    spread = 1.96 * math.sqrt(differences.var() / len(differences))
    assert low == pytest.approx(0.01 - spread, abs=4e-4)
    assert high == pytest.approx(0.01 + spread, abs=4e-4)
    assert bootstrap(differences) == (low, high), "the seed decides"


def test_equal_answers_show_no_difference():
    right = np.random.default_rng(0).random((1, 500)) < 0.8
    assert compare(right, right) == (0.0, 0.0, 0.0, 1.0, 0, 0)


def test_a_comparison_counts_wins_and_losses_on_the_same_images():
    own, other = np.zeros((1, 100), bool), np.zeros((1, 100), bool)
    own[0, :40], other[0, 30:60] = True, True
    found = compare(own, other)
    assert (found.wins, found.losses) == (30, 20)
    assert found.difference == pytest.approx(0.1)
    assert found.low < 0.1 < found.high
    assert found.p == pytest.approx(mcnemar(30, 20))


def test_over_several_seeds_the_difference_is_the_mean_and_p_the_largest():
    random = np.random.default_rng(1)
    other = random.random((1, 1000)) < 0.5
    own = np.stack([other[0] | (random.random(1000) < share) for share in (0.2, 0.001)])
    found = compare(own, other)
    assert found.difference == pytest.approx(own.mean() - other.mean())
    assert found.p == mcnemar(int((own[1] & ~other[0]).sum()), 0)


def test_one_accuracy_over_the_test_set_is_known_to_less_than_half_a_point():
    assert standard_error(0.83, 10_000) == pytest.approx(0.00376, abs=1e-5)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_off_by_one():
    logits = 100 * torch.eye(4)
    assert calibration_error(logits, torch.arange(4)) == pytest.approx(0)
    assert calibration_error(logits, torch.tensor([1, 2, 3, 0])) == pytest.approx(1)
    assert calibration_error(logits, torch.tensor([0, 1, 3, 2])) == pytest.approx(0.5)


def test_gaps_of_different_confidences_do_not_cancel():
    sure, unsure = [math.log(9), 0.0], [math.log(1.5), 0.0]  # confidence 0.9 and 0.6
    logits = torch.tensor([sure] * 10 + [unsure] * 10)
    labels = torch.tensor([0] * 6 + [1] * 4 + [0] * 9 + [1])  # right 0.6 and 0.9
    assert calibration_error(logits, labels) == pytest.approx(0.3, abs=1e-6)


def test_scores_are_shares_and_nats():
    logits = torch.zeros(3, 10)
    logits[0, 0], logits[1, :6], logits[2, 9] = 5, torch.tensor([9.0, 8, 7, 6, 5, 4]), 5
    found = scores(logits, torch.tensor([0, 4, 8]))
    assert found.top1 == pytest.approx(1 / 3)
    assert found.top5 >= 2 / 3
    assert found.loss == pytest.approx(
        float(-logits.double().log_softmax(1)[torch.arange(3), torch.tensor([0, 4, 8])].mean())
    )


def test_the_confusion_matrix_counts_true_rows_and_guessed_columns():
    counts = confusion(torch.tensor([0, 0, 0, 7, 99]), torch.tensor([0, 5, 5, 7, 98]), 100)
    assert (int(counts[0, 0]), int(counts[0, 5]), int(counts[7, 7]), int(counts[99, 98])) == (1, 2, 1, 1)
    assert int(counts.sum()) == 5


def test_the_worst_pairs_come_first_with_their_share_of_the_true_class():
    counts = confusion(torch.tensor([52] * 4 + [47] * 2), torch.tensor([47, 47, 47, 52, 52, 47]), 100)
    pairs = worst_pairs(counts, CLASS_NAMES)
    assert [tuple(pair) for pair in pairs] == [
        ("oak_tree", "maple_tree", 3, 0.75),
        ("maple_tree", "oak_tree", 1, 0.5),
    ]
    assert within_superclass(counts, SUPERCLASSES) == 1.0


def test_superclasses_stand_side_by_side():
    groups = members(SUPERCLASSES)
    assert sorted(at for own in groups.values() for at in own) == list(range(100))
    assert groups["aquatic_mammals"] == [4, 30, 55, 72, 95]  # beaver, dolphin, otter, seal, whale


def test_answers_that_are_no_numbers_are_refused(data_dir):
    from training.data import dataset
    from training.errors import DivergedError

    class Broken(torch.nn.Module):
        def forward(self, pixels):
            logits = torch.zeros(len(pixels), 100)
            logits[0, 3] = float("nan")
            return type("Answer", (), {"logits": logits})

    images = dataset.source(data_dir).load("test", 32)
    with pytest.raises(DivergedError, match="found NaN or infinity for 2 of 100 images"):
        answers(Broken(), images, 50, torch.device("cpu"))


def test_one_half_of_the_images_confirms_what_the_other_chose():
    own, other = np.zeros((1, 40), bool), np.zeros((1, 40), bool)
    own[0, ::2] = True  # right on every even image, and on none of the odd ones
    other[0, 1:7:2] = True
    found = confirm(own, other)
    assert found.chosen == 1.0
    assert found.confirmed == pytest.approx(-3 / 20)
    assert found.p == mcnemar(0, 3)


def test_holms_correction_is_that_of_the_textbook_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
