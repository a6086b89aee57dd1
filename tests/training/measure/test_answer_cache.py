import pytest
import torch

from training.data.images import Images
from training.measure.answer_cache import AnswerCache, digest, surroundings

RECIPE = {"config": {"keep_rate": 0.7}, "seed": 0}


@pytest.fixture
def kept(tmp_path):
    return AnswerCache(tmp_path / "answers")


class Measure:
    """Other answers at every call."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return torch.full((3, 2), float(self.calls))


def test_answers_are_measured_once_for_a_recipe_whatever_the_order_of_its_fields(kept):
    measure = Measure()
    first = kept.of(RECIPE, measure)
    assert torch.equal(kept.of(dict(reversed(RECIPE.items())), measure), first)
    assert torch.equal(AnswerCache(kept.folder).of(RECIPE, measure), first), "another process"
    assert measure.calls == 1


def test_another_recipe_is_measured_anew_and_the_first_stays(kept):
    measure = Measure()
    kept.of(RECIPE, measure)
    assert torch.equal(kept.of({**RECIPE, "seed": 1}, measure), torch.full((3, 2), 2.0))
    assert torch.equal(kept.of(RECIPE, measure), torch.ones(3, 2))


@pytest.mark.parametrize("damage", ["cut", "other recipe", "nothing in it"])
def test_a_file_that_does_not_hold_these_answers_is_replaced(kept, damage):
    measure = Measure()
    kept.of(RECIPE, measure)
    [path] = kept.folder.iterdir()
    if damage == "other recipe":
        kept.of({**RECIPE, "seed": 1}, measure)
        [other] = set(kept.folder.iterdir()) - {path}
        other.replace(path)
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"")
    again = kept.of(RECIPE, measure)
    assert again[0, 0] == measure.calls > 1
    assert torch.equal(kept.of(RECIPE, measure), again)
    assert kept.folder / path.name in kept.folder.iterdir()


def test_a_row_that_fails_keeps_nothing(kept):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept.of(RECIPE, fail)
    assert not kept.folder.exists() or not list(kept.folder.iterdir())


def test_the_surroundings_name_torch_and_the_code_and_the_digest_the_order_of_the_images():
    images = Images(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4))
    assert surroundings()["torch"] == torch.__version__
    assert len(surroundings()["code"]) == 64
    assert digest(images) == digest(images.take(torch.arange(len(images))))
    assert digest(images) != digest(images.take(torch.arange(len(images)).flip(0)))
