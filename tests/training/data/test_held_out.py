import pytest
import torch

from training.data.held_out import unseen
from training.data.images import Images, split_off

WHOLE = Images(torch.zeros(50, 3, 4, 4, dtype=torch.uint8), torch.arange(50))


def record(fraction, seed=0, *, before=None, data="pictures", **config):
    """What a manifest says of a training on `WHOLE`."""
    told = {
        "data": data,
        "images": 50 - round(50 * fraction),
        "config": {"val_fraction": fraction, "seed": seed, **config},
    }
    return told if before is None else {**told, "started_from": {"file": "a", "training": before}}


def labels(training):
    found = unseen(training, lambda: WHOLE)
    return None if found is None else found.labels.tolist()


def held_out(fraction, seed=0):
    return split_off(WHOLE, fraction, seed)[1].labels.tolist()


def test_what_a_run_held_out_is_unseen_by_the_seed_of_its_split():
    assert labels(record(0.2, 3)) == held_out(0.2, 3)
    assert labels(record(0.2, 3, val_seed=None)) == held_out(0.2, 3)
    assert labels(record(0.2, 3, val_seed=0)) == held_out(0.2, 0)


@pytest.mark.parametrize(("first", "second"), [(0.1, 0.3), (0.3, 0.1)])
def test_of_two_stages_with_one_split_only_what_both_held_out_is_unseen(first, second):
    both = set(held_out(first)) & set(held_out(second))
    assert set(labels(record(second, seed=7, val_seed=0, before=record(first)))) == both


@pytest.mark.parametrize(
    "training",
    [
        {},
        record(0.0),
        record(0.2, before=record(0.0)),
        record(0.2, seed=1, before=record(0.2, seed=0)),
        record(0.2, before={"data": "pictures"}),
        {**record(0.2), "images": 41},
    ],
    ids=["no record", "nothing", "nothing before", "another split before", "unknown before", "other images"],
)
def test_nothing_is_known_to_be_unseen_where_a_stage_may_have_seen_it(training):
    assert labels(training) is None


def test_of_a_mean_only_what_every_one_of_its_checkpoints_held_out_is_unseen():
    first, second = record(0.3), record(0.1, seed=7, val_seed=0, before=record(0.3))
    mean = {"data": "pictures", "images": 35, "averaged": [{"training": first}, {"training": second}]}
    assert set(labels(mean)) == set(held_out(0.3)) & set(held_out(0.1))
    assert labels({**mean, "averaged": [{"training": first}, {"training": record(0.3, seed=1)}]}) is None


def test_a_stage_on_other_data_saw_none_of_these_images():
    assert labels(record(0.2, before=record(0.0, seed=5, data="others"))) == held_out(0.2)


def test_the_images_are_not_read_where_none_were_held_out():
    assert unseen(record(0.0), lambda: pytest.fail("read")) is None
