import numpy as np
import torch
from PIL import Image

from model.labels import CLASS_NAMES, SUPERCLASSES
from training import plots
from training.measure.confusion import confusion
from training.plots.heatmaps import coloured, enlarged, overlaid


def opened(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_low_scores_are_blue_and_high_ones_red_one_square_per_patch():
    picture = coloured(np.array([[0.0, 1.0], [0.5, 0.0]], dtype=np.float32))
    assert picture.shape == (224, 224, 3)
    assert picture[0, 0].tolist() == picture[111, 111].tolist() == [0, 0, 128]
    assert picture[0, 112].tolist() == [128, 0, 0]
    red, green, _ = picture[112, 0].astype(int)
    assert green > 240 > red


def test_the_overlay_is_half_image_half_score():
    image = enlarged(np.full((3, 32, 32), 200, np.uint8))
    score = coloured(np.zeros((8, 8), np.float32))
    assert overlaid(image, score)[5, 5].tolist() == [100, 100, 164]


def test_the_heatmap_holds_images_scores_and_overlays_in_three_rows(tmp_path):
    white = np.full((2, 3, 32, 32), 255, np.uint8)
    path = tmp_path / "pictures" / "heatmaps.png"
    plots.heatmaps(white, np.ones((2, 4, 4), np.float32), ["bicycle", "lawn_mower"], path)
    picture = opened(path)
    column = picture[:, 120]  # through the first picture of each row
    dark_red = (column == [128, 0, 0]).all(axis=1)
    pale_red = (abs(column - [192, 128, 128]) <= 1).all(axis=1)
    assert dark_red.sum() > 100
    assert pale_red.sum() > 100
    assert np.flatnonzero(dark_red).max() < np.flatnonzero(pale_red).min()
    assert list(path.parent.iterdir()) == [path]


def test_a_perfect_confusion_matrix_is_a_dark_diagonal_on_white(tmp_path):
    labels = torch.arange(100)
    plots.confusion_matrix(confusion(labels, labels, 100), CLASS_NAMES, SUPERCLASSES, tmp_path / "perfect.png")
    plots.confusion_matrix(
        confusion(labels, (labels + 1) % 100, 100), CLASS_NAMES, SUPERCLASSES, tmp_path / "wrong.png"
    )
    perfect, wrong = opened(tmp_path / "perfect.png"), opened(tmp_path / "wrong.png")
    assert min(perfect.shape[:2]) >= 1500
    assert (perfect > 250).all(axis=2).mean() > 0.85
    assert not np.array_equal(perfect.shape, wrong.shape) or (perfect != wrong).any()


def entry(row, label, top1, macs, budget=None):
    return {"row": row, "label": label, "top1": top1, "macs": macs, "budget": budget, "standard_error": 0.004}


def test_a_study_is_drawn_with_and_without_budgets_and_rows_out_of_reach_left_out(tmp_path):
    plain = entry("plain", "plain ViT", 0.83, 4.6e9)
    plots.study([plain, entry("lfgm", "FreqMerge (LFGM)", 0.82, 3e9)], tmp_path / "dots.png")
    rows = [entry(f"{share}/lfgm", "FreqMerge (LFGM)", 0.8, share * 4.6e9, share) for share in (0.6, 0.7)]
    missed = {"row": "0.5/lfgm", "label": "FreqMerge (LFGM)", "budget": 0.5, "unreachable": "too little"}
    plots.study([plain, *rows, missed], tmp_path / "lines.png")
    for name in ("dots.png", "lines.png"):
        assert opened(tmp_path / name).std() > 10


def test_the_study_of_the_score_has_one_panel_per_schedule_with_the_interval_of_every_row(tmp_path):
    def against(low, high, budget=None):
        found = {"difference": (low + high) / 2, "low": low, "high": high}
        return {**entry("lfgm", "FreqMerge (LFGM)", 0.8, 3e9, budget), "study": "score", "against": {"none": found}}

    plots.study([against(-0.01, 0.0)], tmp_path / "one.png")
    plots.study([against(-0.01, 0.0), against(-0.02, 0.01, 0.5)], tmp_path / "two.png")
    one, two = opened(tmp_path / "one.png"), opened(tmp_path / "two.png")
    red = (abs(one - [214, 39, 40]) < 30).all(axis=2)
    assert np.ptp(np.flatnonzero(red.any(axis=0))) > 100
    assert two.shape[1] > one.shape[1]
