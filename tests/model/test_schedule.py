import pytest

from model.errors import ConfigError
from model.schedule import token_schedule, tokens_kept


def test_the_defaults_leave_137_96_67_and_47_of_196_patches():
    expected = (196, 196, 196, 196, 137, 137, 96, 96, 67, 67, 47, 47)
    assert token_schedule(196, 12, (4, 6, 8, 10), 0.7) == expected


def test_keep_rate_one_keeps_everything():
    assert token_schedule(196, 3, (0, 1, 2), 1.0) == (196, 196, 196)


@pytest.mark.parametrize(
    ("tokens", "rate", "kept"), [(5, 0.5, 3), (4, 0.5, 2), (1, 0.5, 1), (10, 0.75, 8), (10, 0.7, 7)]
)
def test_a_merge_keeps_the_nearest_integer_and_at_least_every_destination(tokens, rate, kept):
    assert tokens_kept(tokens, rate) == kept


def test_a_merge_layer_outside_the_depth_is_refused():
    with pytest.raises(ConfigError, match=r"expected block indices 0..11 for a backbone of depth 12, found \[12\]"):
        token_schedule(196, 12, (4, 12), 0.7)
