import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import BudgetError
from training.studies import assignment
from training.studies.assignment import Mix, answered, by_rank, by_threshold, even_shares, oracle


@st.composite
def few_pictures(draw):
    """Right answers of two to four schedules on one to six pictures, their rising costs, and a mean cost."""
    schedules, images = draw(st.integers(2, 4)), draw(st.integers(1, 6))
    right = draw(
        st.lists(st.lists(st.booleans(), min_size=images, max_size=images), min_size=schedules, max_size=schedules)
    )
    costs = sorted(draw(st.lists(st.integers(1, 40), min_size=schedules, max_size=schedules, unique=True)))
    return np.array(right), costs, draw(st.integers(costs[0], costs[-1]))


def best_of_all(right, costs, mean):
    """Most right answers, and the least that they cost, of every assignment within the mean cost."""
    schedules, images = right.shape
    found = []
    for places in itertools.product(range(schedules), repeat=images):
        total = sum(costs[place] for place in places)
        if total <= mean * images:
            found.append((-sum(right[place, i] for i, place in enumerate(places)), total))
    return min(found)


@settings(deadline=None, max_examples=150)
@given(few_pictures())
def test_no_assignment_within_the_mean_cost_is_more_often_right_than_the_oracle_or_as_often_for_less(case):
    right, costs, mean = case
    places = oracle(right, costs, mean)
    assert (-answered(right, places).sum(), sum(costs[place] for place in places)) == best_of_all(right, costs, mean)


def test_the_oracle_takes_the_cheapest_schedule_that_is_right_and_serves_cheap_needs_first():
    right = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]], bool)
    assert oracle(right, [1, 2, 4], 4).tolist() == [2, 0, 1, 0]
    assert oracle(right, [1, 2, 4], 1).tolist() == [0, 0, 0, 0]
    assert oracle(right, [1, 2, 5], 2).tolist() == [0, 0, 1, 0], "a need of 4 is more than is left of the mean"


costs_and_mean = st.lists(st.integers(1, 5_000_000_000), min_size=3, max_size=5, unique=True).map(sorted)


@settings(deadline=None)
@given(costs=costs_and_mean)
def test_shares_sum_to_one_and_cost_on_average_what_was_asked_for(costs):
    shares = even_shares(costs, costs[1])
    assert shares.sum() == pytest.approx(1)
    assert shares @ np.array(costs) == pytest.approx(costs[1], rel=1e-6, abs=1e-6 * costs[-1])
    assert (shares >= 0).all()


def test_two_schedules_have_the_only_shares_of_that_mean_and_equal_distances_give_equal_shares():
    assert even_shares([1, 4], 2).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert even_shares([1, 2, 3], 2).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_no_other_shares_of_the_same_mean_cost_are_more_even():
    costs, mean = np.array([2.0, 3.0, 5.0, 9.0]), 4
    shares = even_shares(costs.astype(int).tolist(), mean)
    keeps_mean = np.linalg.svd(np.stack([costs, np.ones(4)]))[2][2:]  # directions that change neither sum nor mean
    entropy = -(shares * np.log(shares)).sum()
    for direction in (*keeps_mean, *-keeps_mean):
        other = shares + 0.01 * direction
        assert -(other * np.log(other)).sum() < entropy


def test_a_mean_cost_outside_the_schedules_is_refused():
    with pytest.raises(BudgetError, match="expected a mean cost between 1 and 2 GMACs, found 2; choose keep rates"):
        even_shares([10**9, 2 * 10**9], 2 * 10**9)


@settings(deadline=None)
@given(
    values=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    costs=costs_and_mean,
)
def test_pictures_with_more_never_get_less_and_the_mean_cost_is_met_within_half_a_picture(values, costs):
    shares, statistic = even_shares(costs, costs[1]), np.array(values, float)
    places = by_rank(statistic, shares)
    for one, other in itertools.combinations(range(len(values)), 2):
        if statistic[one] < statistic[other]:
            assert places[one] <= places[other]
    off = np.array(costs)[places].sum() - len(values) * costs[1]
    assert abs(off) <= 0.5 * (costs[-1] - costs[0]) + 1e-5 * costs[-1] * len(values)


def test_equal_pictures_are_divided_by_their_order():
    assert by_rank(np.zeros(4), np.array([0.5, 0.5])).tolist() == [0, 0, 1, 1]


def test_thresholds_come_from_the_other_pictures():
    others = np.arange(100.0)
    assert by_threshold(np.array([10.0, 48.0, 51.0, 500.0]), others, np.array([0.5, 0.5])).tolist() == [0, 0, 1, 1]
    assert by_threshold(np.array([10.0, 70.0, 95.0]), others, np.array([0.6, 0.3, 0.1])).tolist() == [0, 1, 2]


def test_thresholds_from_the_pictures_themselves_divide_them_as_their_ranks_do():
    statistic, shares = np.random.default_rng(0).random(1000), np.array([0.2, 0.5, 0.3])
    assert (by_threshold(statistic, statistic, shares) == by_rank(statistic, shares)).all()


def test_every_schedule_between_the_ends_is_the_mean_of_its_neighbours_and_of_all():
    every = (0, 1, 2, 3)
    assert assignment.mixes(4) == [Mix((0, 2), 1), Mix(every, 1), Mix((1, 3), 2), Mix(every, 2)]
