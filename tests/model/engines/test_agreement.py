import numpy as np
import pytest

from model.engines import agreement
from model.engines.choice import create_engine
from model.engines.engine import EngineOutput
from model.errors import EngineError
from tests.model.engines.rounding import closest_of_the_four, rounding
from tests.model.sample_parts import crops
from tests.support.paths import MINI


class Otherwise:
    """The eager engine, its answers changed."""

    kind = "changed"

    def __init__(self, engine, change):
        self._engine, self._change = engine, change
        self.precision, self.native_size = engine.precision, engine.native_size

    def run(self, images):
        return self._change(self._engine.run(images))


@pytest.fixture
def eager(checkpoint):
    return create_engine(checkpoint, "eager", "cpu", max_batch_size=8)


def reverse(answer):
    return EngineOutput(*(part[::-1] for part in answer))


def rounded(answer):
    return answer._replace(logits=answer.logits.astype(np.float16).astype(np.float32))


def coarse(answer):
    return answer._replace(frequency_scores=np.round(answer.frequency_scores, 1))


def coarse_energy(answer):
    return coarse(answer)._replace(
        frequency_scores=np.stack([answer.frequency_score, np.round(answer.energy, 1)], axis=1)
    )


def unwritten(answer):
    return answer._replace(logits=np.full_like(answer.logits, np.nan))


def one_stale(answer):
    return answer._replace(logits=np.concatenate([answer.logits[1:2], answer.logits[1:]]))


def one_token(answer):
    return answer._replace(source_maps=np.zeros_like(answer.source_maps))


def rounded_indices(answer):
    maps = answer.source_maps
    return answer._replace(source_maps=np.where(maps == maps.max(axis=2, keepdims=True), maps, maps // 2 * 2))


def test_an_engine_that_answers_as_eager_but_for_rounding_passes(eager):
    agreement.check(eager, eager, (1, 5, 8))
    agreement.check(Otherwise(eager, rounded), eager, (1, 8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (reverse, "logits off by"),
        (one_stale, r"logits off by 0 at the median and"),
        (unwritten, "logits that are not finite"),
        (coarse, r"a frequency score off by \S+ \(lfgm; allowed"),
        (coarse_energy, r"a frequency score off by \S+ \(energy; allowed"),
        (one_token, "source maps with other tokens"),
        (rounded_indices, "source maps with other tokens"),
    ],
)
def test_an_engine_that_answers_otherwise_is_refused(eager, change, words):
    with pytest.raises(EngineError, match=f"expected the answers of eager in a batch of 8, found .*{words}"):
        agreement.check(Otherwise(eager, change), eager, (8,))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_half_precision_costs_is_a_third_of_what_is_allowed_at_most(precision):
    told, allowed = rounding(MINI, crops(32), precision), agreement.TOLERANCES[precision]
    assert 0 < told.median < allowed.logits / 3
    assert told.worst < agreement.WORST / 3
    assert 0 < told.score < allowed.score / 3


def test_the_answer_for_another_picture_is_farther_off_than_any_rounding_may_be():
    assert agreement.WORST < 0.8 < closest_of_the_four(MINI)


def test_the_pictures_are_the_same_at_every_call_and_unlike_each_other():
    shown = agreement.pictures(32)
    assert np.array_equal(shown, agreement.pictures(32))
    assert (shown.shape, shown.dtype) == ((4, 3, 32, 32), np.uint8)
    assert all(shown.std(axis=(1, 2, 3)) > 30)
    assert all(np.abs(shown[0].astype(int) - other).mean() > 20 for other in shown[1:].astype(int))
