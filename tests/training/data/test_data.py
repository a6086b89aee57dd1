import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from training.data import dataset
from training.data.augment import random_crop, random_flip
from training.errors import DataError


def test_images_and_labels_come_back_as_written(data_dir):
    images = dataset.source(data_dir).load("test", 32)
    assert images.pixels.shape == (100, 3, 32, 32)
    assert images.pixels.dtype == torch.uint8
    assert sorted(images.labels.tolist()) == list(range(100))
    ninety_nine = images.pixels[images.labels == 99][0].float()
    assert ninety_nine[0, :, :16].mean() > 180  # last column digit 9 on the left, in red
    assert ninety_nine[1, :, 16:].mean() > 180
    assert ninety_nine[2].mean() < 40


def written(folder, **columns):
    pq.write_table(pa.table(columns), folder / "train-00000-of-00001.parquet")
    return folder


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"found no folder at .*nowhere"):
        dataset.source(tmp_path / "nowhere").load("train", 32)


def test_a_folder_without_the_split_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected train-\*\.parquet in .*, found none"):
        dataset.source(tmp_path).load("train", 32)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="expected readable Parquet"):
        dataset.source(tmp_path).load("train", 32)


def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path):
    written(tmp_path, image=[b""], label=[0])
    with pytest.raises(DataError, match="expected the columns img, fine_label, found image, label"):
        dataset.source(tmp_path).load("train", 32)


def test_labels_of_another_data_set_are_refused(tmp_path):
    written(tmp_path, img=[{"bytes": b"x"}], fine_label=[100])
    with pytest.raises(DataError, match=r"expected fine labels 0\.\.99, found 100\.\.100"):
        dataset.source(tmp_path).load("train", 32)


def test_an_image_that_does_not_decode_is_named_by_its_row(tmp_path):
    written(tmp_path, img=[{"bytes": b"nonsense"}], fine_label=[1])
    with pytest.raises(DataError, match=r"row 0: expected an encoded image in img\.bytes"):
        dataset.source(tmp_path).load("train", 32)


def test_an_image_of_another_size_is_refused(data_dir):
    with pytest.raises(DataError, match="expected a 48x48 image, found 32x32"):
        dataset.source(data_dir).load("train", 48)


def test_a_crop_is_a_window_of_the_reflected_image():
    torch.manual_seed(0)
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(50, 3, 8, 8)
    padded = torch.nn.functional.pad(image[:1].float(), (2, 2, 2, 2), mode="reflect")[0, 0]
    windows = {tuple(padded[y : y + 8, x : x + 8].flatten().int().tolist()) for y in range(5) for x in range(5)}
    found = {tuple(crop[0].flatten().tolist()) for crop in random_crop(image, 2)}
    assert found <= windows
    assert len(found) > 10


def test_half_of_the_images_are_mirrored():
    torch.manual_seed(0)
    image = torch.arange(8, dtype=torch.uint8).expand(1000, 3, 8, 8)
    flipped = random_flip(image)
    mirrored = (flipped == image.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], image[~mirrored])
    assert 430 < int(mirrored.sum()) < 570
