import io
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.images.prepare import center_square
from service.pictures import figure, heatmap
from service.pictures.colormaps import COLORMAPS, coloured, lookup_table
from service.pictures.heatmap import ImageFormat, View

GRID = (8, 8)
FLAT = np.zeros(64, np.float32)
SINGLE = np.arange(64)
"""Source map of a model that has merged nothing."""

JET_0, JET_1 = (0, 0, 128), (128, 0, 0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def hot(*patches: int) -> np.ndarray:
    """A score of 1 at some patches and 0 elsewhere."""
    score = FLAT.copy()
    score[list(patches)] = 1
    return score


def draw(picture, score=FLAT, source_map=SINGLE, grid=GRID, view="overlay", **options) -> np.ndarray:
    return np.asarray(heatmap.render(picture, score, source_map, grid, view=view, **options)).astype(int)


def centres(side: int, patches: int = 8) -> np.ndarray:
    """The middle pixel of every patch along one side."""
    return (np.arange(patches) * side + side // 2) // patches


# colours


@pytest.mark.parametrize("name", COLORMAPS)
def test_a_colormap_differs_from_matplotlibs_by_one_level_at_most(name):
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps[name](np.arange(256))[:, :3] * 255
    assert np.abs(lookup_table(name) - expected).max() < 1.6  # rounding of both included


def test_a_lookup_table_cannot_be_changed_by_its_users():
    with pytest.raises(ValueError, match="read-only"):
        lookup_table("jet")[0] = 0


def test_the_ends_of_jet_are_dark_blue_and_dark_red_and_those_of_gray_black_and_white():
    assert lookup_table("jet")[[0, 255]].tolist() == [list(JET_0), list(JET_1)]
    assert lookup_table("gray")[[0, 255]].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("name", COLORMAPS)
def test_smooth_enlargement_shows_no_colour_that_the_map_does_not_have(name):
    score = np.random.default_rng(1).random((14, 14), np.float32)
    found = np.asarray(coloured(score, name, (333, 333), Image.Resampling.BICUBIC)).reshape(-1, 3)
    assert {tuple(colour) for colour in np.unique(found, axis=0)} <= {tuple(c) for c in lookup_table(name)}


# overlay


def test_a_patch_with_score_1_is_red_at_its_place_and_a_far_one_blue():
    found = draw(noise(320, 320), hot(3 * 8 + 6), opacity=1)
    middle = centres(320)
    assert np.abs(found[middle[3], middle[6]] - JET_1).max() <= 2
    assert found[middle[3], middle[1]].tolist() == list(JET_0)
    assert found[middle[6], middle[6]].tolist() == list(JET_0)
    red = found[..., 0] > 100
    assert np.abs(np.argwhere(red).mean(axis=0) - (139.5, 259.5)).max() < 1


def test_no_opacity_leaves_the_square_of_the_picture_as_it_is():
    picture = noise(400, 300)
    left, top, right, bottom = center_square(400, 300)
    found = draw(picture, hot(0, 20), opacity=0)
    assert (found[top:bottom, left:right] == np.asarray(picture)[top:bottom, left:right]).all()


def test_half_opacity_is_half_way_between_picture_and_colours():
    picture = noise(300, 300)
    clear, full, half = (draw(picture, hot(9), opacity=opacity) for opacity in (0, 1, 0.5))
    assert np.abs(half - (clear + full) / 2).max() <= 1


def test_a_very_wide_picture_has_its_score_in_the_centre():
    found = draw(Image.new("RGB", (2000, 100), (0, 255, 0)), hot(*range(64)), opacity=1, size=2000)
    assert found.shape == (100, 2000, 3)
    seen = (found == JET_1).all(axis=2)
    assert seen[:, 950:1050].all()
    assert not seen[:, :950].any()
    assert not seen[:, 1050:].any()


@pytest.mark.parametrize("view", ["overlay", "merged"])
def test_what_the_centre_crop_cuts_off_is_grey_and_dim(view):
    found = draw(Image.new("RGB", (300, 600), (255, 200, 250)), view=view)
    unseen = np.concatenate([found[:150], found[450:]])
    assert (unseen == unseen[..., :1]).all()
    assert unseen.max() < 150
    assert (found[150:450] != found[150:450, :, :1]).any(axis=2).all()


def test_night_stays_visible_outside_the_square():
    found = draw(Image.new("RGB", (600, 300)), view="overlay")
    assert (found[:, :150] == heatmap.UNSEEN_LEVELS[0]).all()
    assert heatmap.UNSEEN_LEVELS[0] > 0


def test_the_overlay_of_a_square_picture_has_nothing_grey():
    assert (draw(Image.new("RGB", (256, 256)), opacity=1) == JET_0).all()


# score


def test_the_score_is_drawn_as_crisp_patches_in_their_colours():
    score = np.linspace(0, 1, 64, dtype=np.float32)
    found = draw(noise(320, 320), score, view="score")
    square = found[:320, :320]
    expected = lookup_table("jet")[np.rint(score * 255).astype(int)].reshape(8, 8, 3)
    assert (square == np.kron(expected, np.ones((40, 40, 1), int))).all()


def test_the_colour_bar_runs_from_1_above_to_0_below():
    side = 400
    card = np.asarray(figure.score_card(np.zeros((8, 8), np.float32), "jet", side))
    bar = card[:, side + side // 32 + 4]
    assert bar[[0, -1]].tolist() == [list(JET_1), list(JET_0)]
    assert (card[:, side] == 255).all()
    words = card[:, side + side // 32 + side // 24 :]
    assert (words[:40] < 128).any()
    assert (words[-40:] < 128).any()
    assert (words[100:300] == 255).all()


def test_scores_outside_the_range_are_clipped():
    found = draw(noise(256, 256), np.array([-1, 0, 1, 2], np.float32), np.arange(4), (2, 2), view="score")
    assert found[[10, 10, 200, 200], [10, 200, 10, 200]].tolist() == [list(c) for c in (JET_0, JET_0, JET_1, JET_1)]


def test_the_score_grid_has_rows_and_columns():
    grid = heatmap.score_grid(np.arange(6) / 5, (2, 3))
    assert grid.dtype == np.float32
    assert np.allclose(grid, [[0, 0.2, 0.4], [0.6, 0.8, 1]])


# merged tokens


def means_by_loop(picture: np.ndarray, source_map: np.ndarray, patch: int) -> np.ndarray:
    """The slow twin: every patch gets the mean colour of all patches of its token; [rows, columns, 3]."""
    rows, columns = source_map.shape
    means = np.zeros((rows, columns, 3))
    for owner in set(source_map.flat):
        owned = [
            picture[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].reshape(-1, 3)
            for y, x in np.argwhere(source_map == owner)
        ]
        means[source_map == owner] = np.concatenate(owned).mean(axis=0)
    return means


@pytest.mark.parametrize("seed", range(3))
def test_every_tokens_patches_get_their_mean_colour(seed):
    picture = noise(320, 320, seed)
    source_map = np.random.default_rng(seed).integers(0, 20, 64)
    found = draw(picture, source_map=source_map, view="merged")
    expected = means_by_loop(np.asarray(picture), source_map.reshape(8, 8), 40)
    inside = found.reshape(8, 40, 8, 40, 3)[:, 2:-2, :, 2:-2]
    assert np.abs(inside - expected[:, None, :, None]).max() <= 0.5001


def test_borders_lie_between_different_tokens_only():
    picture = Image.new("RGB", (320, 320), (200, 200, 200))
    left_and_right = np.tile(np.repeat([5, 9], 4), 8)
    expected = np.full((320, 320, 3), 200)
    expected[:, 159] = 100
    assert (draw(picture, source_map=left_and_right, view="merged") == expected).all()
    above_and_below = np.repeat([5, 9], 32)
    found = draw(picture, source_map=above_and_below, view="merged")
    assert (found == expected.transpose(1, 0, 2)).all()
    assert (draw(picture, source_map=np.full(64, 7), view="merged") == 200).all()


def test_the_border_of_a_dark_token_is_lighter():
    found = draw(Image.new("RGB", (320, 320)), source_map=np.tile(np.repeat([0, 1], 4), 8), view="merged")
    assert (found[:, 159] == 64).all()


def test_only_who_shares_a_token_matters_and_not_its_number():
    source_map = np.random.default_rng(3).integers(0, 9, 64)
    names = np.random.default_rng(4).permutation(1000)[:9]
    picture = noise(200, 300)
    same = [draw(picture, source_map=numbers, view="merged") for numbers in (source_map, names[source_map])]
    assert (same[0] == same[1]).all()


def test_pruned_patches_are_drawn_as_unseen():
    source_map = SINGLE.copy()
    source_map[0] = -1
    found = draw(Image.new("RGB", (320, 320), (255, 0, 0)), source_map=source_map, view="merged")
    assert (found[:40, :40] == found[:40, :40, :1]).all()
    assert found[60, 60].tolist() == [255, 0, 0]


def test_a_picture_with_fewer_pixels_than_patches_is_still_drawn():
    picture = Image.new("RGB", (1000, 5), (90, 100, 110))
    found = draw(picture, source_map=SINGLE, view="merged", size=1000)
    assert found.shape == (5, 1000, 3)


def test_grids_need_not_be_square():
    found = draw(noise(320, 320), hot(5)[:32], np.arange(32), (4, 8), view="score")
    assert found[40, 5 * 40 + 20].tolist() == list(JET_1)


# sizes


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(16, 600),
    st.sampled_from(get_args(View)),
)
def test_no_view_is_larger_than_asked_for(width, height, size, view):
    image = heatmap.render(Image.new("RGB", (width, height)), FLAT, SINGLE, GRID, view=view, size=size)
    assert max(image.size) <= size
    assert image.mode == "RGB"


@pytest.mark.parametrize("view", ["original", "overlay", "merged"])
def test_a_picture_is_reduced_to_the_size_but_not_enlarged(view):
    picture = noise(640, 320)
    for size, expected in ((2048, (640, 320)), (640, (640, 320)), (160, (160, 80))):
        assert heatmap.render(picture, FLAT, SINGLE, GRID, view=view, size=size).size == expected


def test_a_tiny_picture_is_enlarged_by_a_whole_factor_with_hard_edges():
    picture = noise(32, 32)
    assert (draw(picture, view="original") == np.kron(np.asarray(picture), np.ones((8, 8, 1), int))).all()
    assert draw(picture, view="overlay").shape == (256, 256, 3)
    assert draw(picture, view="overlay", size=100).shape == (96, 96, 3)
    assert heatmap.canvas_size((100, 60), 1024) == (200, 120)


# panel


def test_the_panel_shows_original_score_and_overlay_in_a_row():
    picture = noise(300, 300)
    found = draw(picture, hot(*range(64)), view="panel", opacity=1, size=1024)
    height, width = found.shape[:2]
    top = figure.caption_height(1024 // 50)
    side = height - top - figure.GAP
    panes = np.asarray(heatmap.fit(picture, side)).astype(int)
    assert (found[top : top + side, figure.GAP : figure.GAP + side] == panes).all()
    middle = top + side // 2
    assert found[middle, figure.GAP * 2 + side + side // 2].tolist() == list(JET_1)
    assert found[middle, width - figure.GAP - side // 2].tolist() == list(JET_1)
    assert 960 <= width <= 1024
    assert (found[:top] < 128).any()


def test_the_panes_of_a_very_wide_picture_stand_below_one_another():
    found = draw(Image.new("RGB", (900, 90), (0, 255, 0)), view="panel", size=1024)
    green = (found == (0, 255, 0)).all(axis=2)
    assert green[:, 500].any()
    assert green[:, figure.GAP].sum() == 90
    assert found.shape[0] > 3 * 90


def test_the_caption_of_the_panel_names_the_score():
    lfgm, energy = (draw(noise(300, 300), view="panel", score_name=name) for name in ("lfgm", "energy"))
    top = figure.caption_height(1024 // 50)
    assert (lfgm[:top] != energy[:top]).any()
    assert (lfgm[top:] == energy[top:]).all()


def test_captions_that_do_not_fit_are_left_out():
    panes = [Image.new("RGB", (40, 40), "red")] * 2
    for words, dark in (("a", True), ("far too many words", False)):
        sheet = np.asarray(figure.arranged(panes, [words] * 2, 14, in_a_row=True))
        assert ((sheet.max(axis=2) < 128).any()) == dark


# files


@pytest.mark.parametrize("format", get_args(ImageFormat))
def test_a_drawing_is_encoded_in_the_format_asked_for(format):
    image = heatmap.render(noise(64, 64), hot(5), SINGLE, GRID, view="score")
    with Image.open(io.BytesIO(heatmap.encode(image, format))) as found:
        assert (found.format, found.size) == (format.upper(), image.size)
        assert np.abs(np.asarray(found.convert("RGB")).astype(int) - np.asarray(image)).mean() < 4


def test_png_is_lossless():
    image = noise(50, 40)
    with Image.open(io.BytesIO(heatmap.encode(image, "png"))) as found:
        assert (np.asarray(found) == np.asarray(image)).all()


@pytest.mark.parametrize("view", get_args(View))
def test_drawing_changes_none_of_its_inputs(view):
    picture, score, source_map = noise(90, 60), hot(1), SINGLE.copy()
    before = picture.tobytes(), score.copy(), source_map.copy()
    draw(picture, score, source_map, view=view, size=80)
    assert picture.tobytes() == before[0]
    assert (score == before[1]).all()
    assert (source_map == before[2]).all()
