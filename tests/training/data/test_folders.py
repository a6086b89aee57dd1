"""One's own pictures: how folders are read, and from training to an answer of the service."""

import io
import shutil

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import read_manifest
from model.errors import BackboneError, ConfigError
from service.app import create_app
from service.pictures.jobs import decode_file
from service.runtime.loading import load_model
from service.settings import Settings
from tests.support.live import serving
from tests.training import folders as pictures
from training import ablation, cli, evaluate, parity, release, train
from training.config import TrainConfig
from training.data import dataset, folders, memory
from training.data.folders import Folders
from training.dynamicvit import command
from training.errors import DataError, WeightsError
from training.run import task

MODELS = {
    name: f"--image_size 32 --native_size 48 --threads 1 --device cpu --backbone {name} "
    "--backbone_args patch_size=8 embed_dim=48 depth=3 num_heads=3 --merge_layers 1"
    for name in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224")
}
MEANS = {
    "vit_tiny_patch16_224": (0.5, 0.5, 0.5),
    "eva02_tiny_patch14_224": (0.48145466, 0.4578275, 0.40821073),
}
MODEL = MODELS["vit_tiny_patch16_224"]


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """Train and test folders."""
    folder = tmp_path_factory.mktemp("own")
    pictures.write(folder / "train", 12)
    pictures.write(folder / "test", 9)
    return folder


@pytest.fixture(scope="session", params=MODELS)
def learned(own, tmp_path_factory, request):
    """A checkpoint of a few steps on the pictures, of each family of backbones."""
    output = tmp_path_factory.mktemp("learned")
    words = "--epochs 4 --batch_size 8 --lr 3e-3 --warmup_epochs 0.5 --val_fraction 0.2 --mixup 0.1"
    train.main([*words.split(), *MODELS[request.param].split(), "--data_dir", str(own), "--output_dir", str(output)])
    return output / "checkpoints" / "best_model.safetensors"


@pytest.fixture
def damaged(own, tmp_path):
    """A copy of the pictures to spoil."""
    return shutil.copytree(own, tmp_path / "own")


def test_training_sees_every_picture_bit_for_bit_as_the_service_does(own):
    for side in (32, 224):
        images = dataset.source(own).load("test", side)
        files = [file for name in pictures.CLASSES for file in sorted((own / "test" / name).iterdir())]
        assert len(files) == len(images) == 27
        for file, pixels in zip(files, images.pixels.numpy(), strict=True):
            served = decode_file(file.read_bytes(), Settings(), side).pixels
            assert np.array_equal(pixels, served), file.name


def test_the_folders_name_the_classes_and_label_the_pictures(own):
    images = dataset.source(own).load("train", 32)
    assert dataset.source(own).classes.names == pictures.CLASSES
    assert images.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert images.pixels[0].float().mean(dim=(1, 2)).argmax() == 0
    assert images.pixels[-1].float().mean(dim=(1, 2)).argmax() == 2


def test_a_checkpoint_is_evaluated_and_names_its_classes_in_every_report(own, learned, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = read_manifest(learned)
    assert manifest.class_names == pictures.CLASSES
    assert (manifest.superclasses, manifest.config.num_classes) == ((), 3)
    own_mean = MEANS[manifest.config.backbone]
    assert (manifest.preprocess.native_size, manifest.preprocess.mean) == (48, own_mean), "the backbone's own"
    assert manifest.training["data"] == own.name
    told = ["--ckpt", str(learned), "--data_dir", str(own), "--device", "cpu", "--threads", "1"]
    evaluate.main([*told, "--visualize", "--confusion"])
    assert "27 test images" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "confusion_matrix.png",
        "evaluate.jsonl",
        "lfgm_heatmaps.png",
    ]
    assert (tmp_path / "results" / "evaluate.jsonl").is_file(), "apart from the figures of CIFAR-100"
    parity.main([*told, "--engines", "eager:fp32"])
    assert "agrees on 100.00%" in capsys.readouterr().out
    ablation.main([*told, "--study", "alpha", "--alphas", "0.7", "--timing_batch", "0"])
    assert "plain ViT" in capsys.readouterr().out
    out = tmp_path / "released.safetensors"
    release.main([*told, "--out", str(out), "--name", "pets"])
    released = read_manifest(out)
    assert (released.class_names, released.training["test_images"]) == (pictures.CLASSES, 27)


DYNAMIC = "--epochs 1 --batch_size 8 --threads 1 --device cpu --rho 0.6 --predictor_layers 1".split()


@pytest.mark.parametrize("learned", ["vit_tiny_patch16_224"], indirect=True)
def test_dynamicvit_learns_on_own_pictures_too(own, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command.main([*DYNAMIC, "--ckpt", str(learned), "--data_dir", str(own)])
    assert read_manifest(tmp_path / "checkpoints" / "best_model.safetensors").class_names == pictures.CLASSES
    assert (tmp_path / "results" / "dynamicvit.jsonl").is_file()


@pytest.mark.parametrize("learned", ["eva02_tiny_patch14_224"], indirect=True)
def test_dynamicvit_says_which_backbones_it_takes(own, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match=r"DynamicViT expects a timm VisionTransformer, found Eva"):
        command.main([*DYNAMIC, "--ckpt", str(learned), "--data_dir", str(own)])


def test_the_service_answers_with_the_folders_names_and_draws_a_heatmap(own, learned):
    app = create_app(Settings(checkpoint=learned, engine="eager", device="cpu", threads=1), load_model)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        labels = [entry["label"] for entry in client.get("/labels").json()["labels"]]
        answer = client.post("/classify", content=(own / "test" / "dog" / "0.jpg").read_bytes()).json()
        drawing = client.get(answer["heatmap_url"])
    assert tuple(labels) == pictures.CLASSES
    assert sorted(entry["label"] for entry in answer["predictions"]) == list(pictures.CLASSES)
    assert {entry["superclass"] for entry in answer["predictions"]} == {None}
    assert Image.open(io.BytesIO(drawing.content)).format == "PNG"


def test_one_level_of_folders_is_divided_by_name_and_always_alike(own, damaged, tmp_path):
    both = [dataset.source(own / "train").load(split, 16) for split in ("train", "test")]
    assert [len(images) for images in both] == [30, 6]
    assert [images.labels.bincount().tolist() for images in both] == [[10] * 3, [2] * 3]
    again = dataset.source(damaged / "train").load("test", 16)
    assert torch.equal(again.pixels, both[1].pixels)
    taken = {tuple(pixels.flatten().tolist()) for images in both for pixels in images.pixels}
    assert len(taken) == 36, "every picture is in one of the two"


def test_val_stands_in_for_test_and_a_test_set_may_lack_a_class(damaged):
    (damaged / "test").rename(damaged / "val")
    shutil.rmtree(damaged / "val" / "dog")
    assert dataset.source(damaged).load("test", 16).labels.bincount().tolist() == [9, 0, 9]


def test_hidden_files_are_passed_over(own, damaged):
    (damaged / ".cache").mkdir()
    (damaged / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    assert len(dataset.source(damaged).load("train", 16)) == len(dataset.source(own).load("train", 16))


def emptied(folder):
    for file in (folder / "train" / "dog").iterdir():
        file.unlink()


def left_alone(folder):
    for name in pictures.CLASSES[1:]:
        shutil.rmtree(folder / "train" / name)
        shutil.rmtree(folder / "test" / name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (emptied, r"expected pictures in .*train/dog, found none; add some or remove the folder"),
        (left_alone, r"expected a folder for each of at least 2 classes in .*train, found 1"),
        (lambda at: (at / "test" / "emu").mkdir(), r"classes of the training pictures alone, found also emu; move"),
        (lambda at: shutil.rmtree(at / "train"), r"expected .*own/train beside .*own/test, found none"),
        (lambda at: (at / "train" / "cat" / "notes.txt").write_text("x"), r"cat/notes\.txt: expected a picture \(JPEG"),
        (lambda at: (at / "train" / "cat" / "0.jpg").write_bytes(b"\xff\xd8\xff"), r"cat/0\.jpg: .* does not decode"),
        (lambda at: (at / "train" / "0.jpg").write_bytes(b"x"), r"every picture in the folder of its class, .*train/0"),
    ],
)
def test_what_is_no_such_data_set_is_refused_by_name(damaged, spoil, said):
    spoil(damaged)
    with pytest.raises(DataError, match=said):
        dataset.source(damaged).load("train", 16)


def test_a_class_of_one_picture_cannot_be_divided(damaged):
    for file in list((damaged / "train" / "dog").iterdir())[1:]:
        file.unlink()
    with pytest.raises(DataError, match=r"expected at least 2 pictures in .*dog, as one of them is for testing, fou"):
        dataset.source(damaged / "train").load("test", 16)


def test_a_missing_test_set_is_named(damaged):
    shutil.rmtree(damaged / "test")
    with pytest.raises(DataError, match=r"expected .*own/test with a folder per class, found none"):
        dataset.source(damaged).load("test", 16)


def test_another_number_of_classes_than_the_folders_is_refused(own, tiny_model):
    config = TrainConfig(data_dir=own)
    assert task.freqmerge(config, tiny_model).model.config.num_classes == 3
    with pytest.raises(ConfigError, match=r"num_classes: expected the 3 of .*, found 100"):
        task.freqmerge(config, type(tiny_model)(**{**tiny_model.model_dump(), "num_classes": 100}))


def test_a_model_of_other_classes_neither_judges_nor_teaches(own, trained, tiny_model):
    with pytest.raises(DataError, match=r"expected a model of .*'s 3 classes, found 100 classes \(apple"):
        dataset.test_images(dataset.source(own), read_manifest(trained), trained)
    with pytest.raises(WeightsError, match=r"teacher: expected a model of .* at 32 pixels, found 100 classes at 32"):
        task.freqmerge(TrainConfig(data_dir=own, teacher=trained), tiny_model)


def test_pixels_that_would_not_fit_are_refused_before_they_are_read(own, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2 * 36 * 3 * 16 * 16 - 1)
    with pytest.raises(DataError, match=r"native_size: expected pixels that fit .* found 36 pictures of 16 x 16"):
        dataset.source(own).load("train", 16)
    monkeypatch.setattr(memory, "available", lambda: None)
    assert len(dataset.source(own).load("train", 16)) == 36


def test_the_memory_left_is_the_smaller_of_the_machines_and_the_containers(tmp_path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    group.mkdir()
    assert memory.available(meminfo, group) is None
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
    assert memory.available(meminfo, group) == 2_048_000
    for name, told in (("memory.max", "max"), ("memory.current", "500000"), ("memory.stat", "inactive_file 1000")):
        (group / name).write_text(f"{told}\n")
    assert memory.available(meminfo, group) == 2_048_000
    (group / "memory.max").write_text("1000000\n")
    assert memory.available(meminfo, group) == 501_000


def test_parquet_is_cifar_100_and_folders_are_ones_own(data_dir, own):
    assert tuple(dataset.source(place).own for place in (data_dir, own, None)) == (False, True, False)
    assert isinstance(dataset.source(own), Folders)
    assert folders.read(own / "test" / "cat" / "0.jpg", 8).shape == (3, 8, 8)


def test_a_bad_layout_ends_the_command_with_one_line(damaged, tmp_path, capsys):
    emptied(damaged)
    words = [*MODEL.split(), "--data_dir", str(damaged), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: train.main(words))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: data_dir: expected pictures in")
