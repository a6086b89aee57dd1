import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from model.errors import ConfigError, ImageError
from model.images.input_stage import InputStage
from model.images.prepare import center_square, prepare_image
from model.images.preprocess import Preprocess


def test_the_centred_square_of_a_wide_and_of_a_tall_picture():
    assert center_square(101, 40) == (30, 0, 70, 40)
    assert center_square(40, 101) == (0, 30, 40, 70)


def test_a_picture_of_the_native_size_passes_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(prepare_image(Image.fromarray(pixels), 32), pixels.transpose(2, 0, 1))


def test_only_the_centre_of_a_wide_picture_is_seen():
    pixels = np.zeros((50, 150, 3), np.uint8)
    pixels[:, 50:100] = (10, 200, 30)
    prepared = prepare_image(Image.fromarray(pixels), 32)
    assert prepared.shape == (3, 32, 32)
    assert [int(prepared[channel].min()) for channel in range(3)] == [10, 200, 30]


def test_reducing_averages_instead_of_skipping_pixels():
    pixels = np.zeros((320, 320, 3), np.uint8)
    pixels[::2] = 255
    prepared = prepare_image(Image.fromarray(pixels), 32)
    assert abs(prepared.astype(int) - 128).max() <= 4


def test_a_picture_of_another_mode_is_refused():
    with pytest.raises(ImageError, match="expected an RGB picture, found mode L"):
        prepare_image(Image.new("L", (40, 40)), 32)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 48, 224])
def test_the_matrix_enlargement_equals_torchs_interpolation(interpolation, size):
    stage = InputStage(Preprocess(interpolation=interpolation), size)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor(Preprocess().mean)[:, None, None]
    std = torch.tensor(Preprocess().std)[:, None, None]
    enlarged = F.interpolate(images.float() / 255, size=(size, size), mode=interpolation, align_corners=False)
    torch.testing.assert_close(stage(images), (enlarged - mean) / std, atol=2e-5, rtol=0)


def test_a_bad_preprocessing_is_refused_with_field_and_range():
    with pytest.raises(ConfigError, match="interpolation: expected 'bicubic' or 'bilinear', found 'nearest'"):
        Preprocess(interpolation="nearest")
