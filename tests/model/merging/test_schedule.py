import pytest

from model.errors import ConfigError
from model.merging.schedule import token_schedule, tokens_kept


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


def test_thirteen_merged_in_every_block_is_tomes_schedule():
    expected = tuple(196 - 13 * block for block in range(1, 13))
    assert token_schedule(196, 12, range(12), 0.7, (13,) * 12) == expected


def test_counts_belong_to_the_merging_blocks_in_order():
    assert token_schedule(20, 5, (1, 3, 4), 0.5, (3, 0, 4)) == (20, 17, 17, 17, 13)


def test_a_count_merges_at_most_half_the_tokens_as_in_tome():
    assert token_schedule(9, 5, range(5), 0.7, (100,) * 5) == (5, 3, 2, 1, 1)


def test_keep_rate_one_keeps_everything_whatever_the_counts():
    assert token_schedule(196, 3, (0, 1, 2), 1.0, (50, 50, 50)) == (196, 196, 196)


def test_a_merge_layer_outside_the_depth_is_refused():
    with pytest.raises(ConfigError, match=r"expected block indices 0..11 for a backbone of depth 12, found \[12\]"):
        token_schedule(196, 12, (4, 12), 0.7)
