"""From logits to labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.predictions import most_probable, probabilities

LABELS = [{"class_id": class_id, "label": name, "superclass": None} for class_id, name in enumerate("abc")]


def test_probabilities_are_the_softmax() -> None:
    assert probabilities(np.log(np.array([1, 2, 5], np.float32))) == pytest.approx([0.125, 0.25, 0.625], abs=1e-7)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=50))
def test_probabilities_of_any_finite_logits_sum_to_one(logits: list[float]) -> None:
    found = probabilities(np.array(logits, np.float32))
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)


def test_labels_come_most_probable_first_and_ties_by_id() -> None:
    found = most_probable(np.array([1, 3, 1], np.float32), LABELS, 3)
    assert [prediction["label"] for prediction in found] == ["b", "a", "c"]
    assert found[0] == {"class_id": 1, "label": "b", "superclass": None, "probability": 0.786986}


def test_asking_for_more_labels_than_there_are_gives_all() -> None:
    assert len(most_probable(np.zeros(3, np.float32), LABELS, 100)) == 3
