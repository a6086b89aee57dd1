import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import ConfigError
from model.merging.frequency import (
    channel_energy,
    energy_score,
    energy_share,
    frequency_score,
    high_pass,
    low_pass_basis,
    mean_energy,
    score_values,
)
from tests.model.merging.twins import fft_energy, fft_score

grids = st.tuples(st.integers(1, 16), st.integers(1, 16))


@settings(deadline=None, max_examples=60)
@given(grid=grids, radius=st.integers(0, 9), seed=st.integers(0, 2**16))
def test_the_closed_form_equals_the_fft_in_double_precision(grid, radius, seed):
    tokens = torch.randn(2, grid[0] * grid[1], 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis = low_pass_basis(grid, radius)
    if basis.shape[1] == basis.shape[0]:  # everything is low: what is left is rounding, which min-max would stretch
        assert high_pass(tokens.mean(2), basis).abs().max() < 1e-12
        return
    torch.testing.assert_close(
        frequency_score(tokens, grid, radius), fft_score(tokens, grid, radius), atol=1e-9, rtol=0
    )


@settings(deadline=None, max_examples=60)
@given(grid=grids, radius=st.integers(0, 9), channels=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_the_energy_of_all_channels_equals_the_fft_in_double_precision(grid, radius, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, grid[0] * grid[1], channels, dtype=torch.float64, generator=generator)
    basis, energy = low_pass_basis(grid, radius), fft_energy(tokens, grid, radius)
    torch.testing.assert_close(channel_energy(tokens, basis), energy, atol=1e-12, rtol=1e-9)
    if basis.shape[1] == basis.shape[0]:  # everything is low: what is left is rounding, which min-max would stretch
        return
    low, high = energy.amin(1, keepdim=True), energy.amax(1, keepdim=True)
    torch.testing.assert_close(energy_score(tokens, basis), (energy - low) / (high - low + 1e-6), atol=1e-9, rtol=0)


def test_on_the_seed_grid_the_energy_of_all_channels_agrees_with_the_fft_in_single_precision():
    tokens = torch.randn(4, 196, 384, generator=torch.Generator().manual_seed(3))
    energy = fft_energy(tokens.double(), (14, 14), 2)
    low, high = energy.amin(1, keepdim=True), energy.amax(1, keepdim=True)
    found = energy_score(tokens, low_pass_basis((14, 14), 2).float())
    torch.testing.assert_close(found.double(), (energy - low) / (high - low + 1e-6), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(grid=grids, seed=st.integers(0, 2**16))
def test_one_channel_alone_has_the_energy_that_lfgm_scores(grid, seed):
    tokens = torch.randn(2, grid[0] * grid[1], 1, generator=torch.Generator().manual_seed(seed))
    found = energy_score(tokens, low_pass_basis(grid, 1).float())
    torch.testing.assert_close(found, frequency_score(tokens, grid, 1), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=60)
@given(grid=grids, radius=st.integers(0, 9), channels=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_the_share_of_the_energy_is_that_of_the_spectrum_without_its_low_frequencies(grid, radius, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, grid[0] * grid[1], channels, dtype=torch.float64, generator=generator)
    high, whole = (fft_energy(tokens, grid, limit).mean(dim=1) for limit in (radius, 0))  # all but the mean
    found = energy_share(tokens, low_pass_basis(grid, radius))
    torch.testing.assert_close(found, high / (whole + 1e-6), atol=1e-9, rtol=0)
    assert ((found >= -1e-9) & (found <= 1)).all()


def test_a_flat_image_has_no_share_of_high_frequency_energy_and_a_chequerboard_nothing_else():
    basis = low_pass_basis((8, 8), 2).float()
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().reshape(1, 64, 1)
    assert energy_share(torch.ones(1, 64, 3), basis).item() == pytest.approx(0, abs=1e-6)
    assert energy_share(board.expand(1, 64, 3), basis).item() == pytest.approx(1, abs=1e-4)


def test_the_energy_of_the_mean_tells_how_strong_the_detail_is_where_the_score_cannot():
    values, basis = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)), low_pass_basis((8, 8), 2).float()
    torch.testing.assert_close(mean_energy(3 * values, basis), 9 * mean_energy(values, basis))
    torch.testing.assert_close(score_values(3 * values, basis), score_values(values, basis), atol=1e-4, rtol=0)


def test_detail_that_cancels_in_the_channel_mean_is_seen_by_the_energy_alone():
    tokens = torch.zeros(1, 64, 8)
    tokens[0, 27, :4], tokens[0, 27, 4:] = 10.0, -10.0
    energy = energy_score(tokens, low_pass_basis((8, 8), 1).float())[0]
    assert energy.argmax() == 27
    assert energy[27] == pytest.approx(1.0, abs=1e-4)
    assert frequency_score(tokens, (8, 8), 1).max() < 1e-6


def test_the_seed_grid_has_thirteen_low_modes_and_agrees_with_the_fft_in_single_precision():
    tokens = torch.randn(4, 196, 64, generator=torch.Generator().manual_seed(3))
    assert low_pass_basis((14, 14), 2).shape == (196, 13)
    expected = fft_score(tokens.double(), (14, 14), 2)
    torch.testing.assert_close(frequency_score(tokens, (14, 14), 2).double(), expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(grid=grids, radius=st.integers(0, 9))
def test_the_low_modes_are_orthonormal(grid, radius):
    basis = low_pass_basis(grid, radius)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-10, rtol=0)


def test_a_flat_image_scores_zero_everywhere():
    assert frequency_score(torch.ones(1, 64, 8), (8, 8), 2).max() < 1e-6


def test_a_single_bright_patch_scores_one_there_and_little_elsewhere():
    tokens = torch.zeros(1, 64, 8)
    tokens[0, 27] = 10.0
    score = frequency_score(tokens, (8, 8), 1)[0]
    assert score.argmax() == 27
    assert score[27] == pytest.approx(1.0, abs=1e-4)
    assert score[torch.arange(64) != 27].max() < 0.05


def test_half_precision_tokens_are_scored_in_single_precision():
    tokens = torch.randn(2, 64, 16).half()
    score = frequency_score(tokens, (8, 8), 2)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, frequency_score(tokens.float(), (8, 8), 2))


def test_a_grid_that_does_not_hold_the_patches_is_refused():
    with pytest.raises(ConfigError, match="expected 49 patches for a 7x7 grid, found 64"):
        frequency_score(torch.zeros(1, 64, 8), (7, 7), 2)


def test_a_negative_radius_is_refused():
    with pytest.raises(ConfigError, match="radius of at least 0"):
        low_pass_basis((8, 8), -1)
