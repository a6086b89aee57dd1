"""Frequency scores: high-frequency energy on the patch grid, of the channel mean (LFGM) and of all channels.

The original README filters with a 2-D FFT. The filter is linear and the grid is fixed, so it is a projection:
with U the orthonormal real modes inside the disc of radius r, high-pass(m) = m - U (U^T m). That
form needs no FFT, which TensorRT lacks and half precision restricts to power-of-two sizes.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from model.errors import ConfigError

EPSILON = 1e-6
"""Added to the denominator of the min-max normalisation, and of `energy_share`."""


@lru_cache(maxsize=64)
def low_pass_basis(grid: tuple[int, int], radius: int) -> Float[Tensor, "patches modes"]:
    """Orthonormal real Fourier modes with fy² + fx² <= radius², float64 on the CPU.

    `grid` is (rows, columns); frequencies are the signed indices of the discrete Fourier transform, so
    on 14x14 radius 2 holds 13 modes. Raises `ConfigError` for an empty grid or a negative radius.
    """
    rows, columns = grid
    if rows < 1 or columns < 1 or radius < 0:
        raise ConfigError(f"expected a grid of at least 1x1 and a radius of at least 0, found {grid} and {radius}")
    # by name: under another default device (such as meta) the cache would keep what that device holds
    y, x = torch.meshgrid(torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu"), indexing="ij")
    modes = []
    for ky, kx in _half_plane(rows, columns):
        fy, fx = _signed(ky, rows), _signed(kx, columns)
        if fy * fy + fx * fx > radius * radius:
            continue
        # ky·y·columns + kx·x·rows counts whole turns in units of 1/(rows·columns): exact integers
        turns = ((ky * y * columns + kx * x * rows) % (rows * columns)).flatten().double() / (rows * columns)
        modes.append(torch.cos(2 * math.pi * turns))
        if (2 * ky) % rows or (2 * kx) % columns:  # its own conjugate otherwise: the sine is zero
            modes.append(torch.sin(2 * math.pi * turns))
    return torch.stack([mode / mode.norm() for mode in modes], dim=1)


def _half_plane(rows: int, columns: int) -> list[tuple[int, int]]:
    """One frequency of every conjugate pair, the zero frequency included."""
    every = [(ky, kx) for ky in range(rows) for kx in range(columns)]
    return [(ky, kx) for ky, kx in every if (ky, kx) <= (-ky % rows, -kx % columns)]


def _signed(k: int, n: int) -> int:
    return k if 2 * k <= n else k - n


def high_pass(
    values: Float[Tensor, "batch patches"], basis: Float[Tensor, "patches modes"]
) -> Float[Tensor, "batch patches"]:
    """`values` without their low-frequency modes, float32 or wider."""
    wide = values if values.dtype == torch.float64 else values.float()
    modes = basis.to(wide.dtype)
    return wide - (wide @ modes) @ modes.T


def normalise(energy: Float[Tensor, "batch patches"]) -> Float[Tensor, "batch patches"]:
    """`energy` stretched to 0..1 per image by min-max; a flat image gives zeros."""
    low, high = energy.amin(dim=1, keepdim=True), energy.amax(dim=1, keepdim=True)
    return (energy - low) / (high - low + EPSILON)


def mean_energy(
    values: Float[Tensor, "batch patches"], basis: Float[Tensor, "patches modes"]
) -> Float[Tensor, "batch patches"]:
    """High-frequency energy of one number per patch (the channel mean m of its token): ((I - U U^T) m)².

    LFGM before its min-max, so that images can be compared; float32 or wider.
    """
    return high_pass(values, basis).square()


def score_values(
    values: Float[Tensor, "batch patches"], basis: Float[Tensor, "patches modes"]
) -> Float[Tensor, "batch patches"]:
    """Frequency score, 0..1, of one number per patch (the channel mean of its token)."""
    return normalise(mean_energy(values, basis))


def channel_energy(
    features: Float[Tensor, "batch patches dim"], basis: Float[Tensor, "patches modes"]
) -> Float[Tensor, "batch patches"]:
    """High-frequency energy of all channels: the mean over c of ((I - U U^T) F_c)², float32 or wider."""
    wide = features if features.dtype == torch.float64 else features.float()
    modes = basis.to(wide.dtype)
    return (wide - modes @ (modes.T @ wide)).square().mean(dim=2)


def energy_score(
    features: Float[Tensor, "batch patches dim"], basis: Float[Tensor, "patches modes"]
) -> Float[Tensor, "batch patches"]:
    """High-frequency energy of all channels, stretched to 0..1 per image; a flat image gives zeros."""
    return normalise(channel_energy(features, basis))


def energy_share(
    features: Float[Tensor, "batch patches dim"], basis: Float[Tensor, "patches modes"]
) -> Float[Tensor, " batch"]:
    """Share of an image's variance over the grid that is high-frequency, 0..1, all channels together; 0 if flat.

    Σ‖(I - U U^T) F_c‖² / Σ‖F_c - mean(F_c)‖², sums over the channels c. By Parseval's theorem these are sums of squared
    Fourier coefficients: of those outside the basis, and of all but the zero frequency.
    """
    wide = features if features.dtype == torch.float64 else features.float()
    variance = wide.var(dim=1, correction=0).mean(dim=1)
    return channel_energy(wide, basis).mean(dim=1) / (variance + EPSILON)


def rank(score: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
    """The share of the other tokens of the image whose score is lower, 0..1; equal scores share the lowest rank.

    By comparison of all pairs, because a sort of sorted indices needs a gather.
    """
    lower = (score[:, None, :] < score[:, :, None]).float().sum(dim=2)
    return lower / max(1, score.shape[1] - 1)


def frequency_score(
    tokens: Float[Tensor, "batch patches dim"], grid: tuple[int, int], radius: int
) -> Float[Tensor, "batch patches"]:
    """Frequency score (LFGM), 0..1 per image, of patch tokens in row-major grid order.

    Channel mean, high-pass of the given radius (frequency-grid units), square, min-max; float32 inside
    whatever the tokens' type (float64 stays). Raises `ConfigError` if the grid does not hold the patches.
    """
    if tokens.shape[1] != grid[0] * grid[1]:
        raise ConfigError(
            f"expected {grid[0] * grid[1]} patches for a {grid[0]}x{grid[1]} grid, found {tokens.shape[1]}"
        )
    wide = tokens if tokens.dtype == torch.float64 else tokens.float()
    return score_values(wide.mean(dim=2), low_pass_basis(grid, radius).to(tokens.device))
