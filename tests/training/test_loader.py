import pytest
import torch

from model import ModelConfig
from model.images.preprocess import Preprocess
from training import loader, train
from training.config import TrainConfig
from training.data import dataset
from training.data.images import Images
from training.data.loader import Loader
from training.errors import DataError

CPU = torch.device("cpu")


def numbered(count=30):
    """Images that can be told apart by their label."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Images(pixels, torch.arange(count))


def made(config, epoch=0, first=0, count=30):
    return list(Loader(numbered(count), config, Preprocess(), CPU).epoch(epoch, first))


def test_an_epoch_takes_every_image_once_but_for_those_that_fill_no_batch():
    batches = made(TrainConfig(batch_size=8))
    labels = torch.cat([batch.labels for batch in batches]).tolist()
    assert [len(batch) for batch in batches] == [8, 8, 8]
    assert len(set(labels)) == 24
    images = numbered()
    assert all(torch.equal(batch.pixels, images.take(batch.labels).pixels) for batch in batches)


def test_a_short_epoch_takes_other_images_each_time_and_none_twice():
    config = TrainConfig(batch_size=5, epoch_images=12)
    first, second = (torch.cat([batch.labels for batch in made(config, epoch)]).tolist() for epoch in (0, 1))
    assert len(set(first)) == len(set(second)) == 10, "two whole batches of five"
    assert set(first) != set(second)


@pytest.mark.parametrize(
    ("epoch_images", "message"),
    [
        (31, "epoch_images: expected at most the 30 training images, found 31"),
        (7, "batch_size: expected at most 7, because epoch_images is 7, found 8"),
    ],
)
def test_an_epoch_of_more_images_than_there_are_or_of_no_whole_batch_is_refused(epoch_images, message):
    with pytest.raises(DataError, match=message):
        made(TrainConfig(batch_size=8, epoch_images=epoch_images))


def test_the_order_is_the_seeds_and_another_one_each_epoch():
    def order(seed, epoch):
        return [batch.labels.tolist() for batch in made(TrainConfig(batch_size=8, seed=seed), epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("rand_augment", [None, "rand-m9-n2-mstd0.5"])
def test_an_epoch_that_is_entered_in_the_middle_goes_on_as_it_would_have(rand_augment):
    config = TrainConfig(batch_size=8, rand_augment=rand_augment, workers=0)
    whole, rest = made(config, epoch=3), made(config, epoch=3, first=1)
    assert len(rest) == 2
    for expected, found in zip(whole[1:], rest, strict=True):
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.pixels, expected.pixels)


def test_randaugment_changes_pictures_and_another_way_each_epoch():
    config = TrainConfig(batch_size=30, rand_augment="rand-m9-n2", workers=0)
    first, second = made(config, epoch=0)[0], made(config, epoch=1)[0]
    images = numbered()
    changed = (first.pixels != images.take(first.labels).pixels).flatten(1).any(dim=1)
    assert 10 < changed.sum() <= 30  # timm applies each of two operations with probability one half
    by_label = second.pixels[second.labels.argsort()] != first.pixels[first.labels.argsort()]
    assert by_label.flatten(1).any(dim=1).sum() > 10


@pytest.mark.slow
def test_worker_processes_make_the_batches_that_this_one_would():
    config = TrainConfig(batch_size=8, rand_augment="rand-m9-n2-mstd0.5", workers=0)
    alone, helped = made(config), made(config.replace(workers=2))
    for expected, found in zip(alone, helped, strict=True):
        assert torch.equal(found.pixels, expected.pixels)
        assert torch.equal(found.labels, expected.labels)


def test_a_batch_larger_than_the_training_images_is_refused():
    with pytest.raises(DataError, match="batch_size: expected at most 30, because there are 30 training images, fou"):
        made(TrainConfig(batch_size=64))


def test_a_run_with_randaugment_resumes_to_the_same_numbers(recipe, tiny_model):
    config = recipe.replace(rand_augment="rand-m5-n1", workers=0, epochs=2, optimizer="lamb")
    whole = train.train(config, tiny_model)
    broken = config.replace(output_dir=config.output_dir / "killed", save_every_s=1e-9)
    run = _dying(broken, tiny_model, after=12)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert train.train(broken.replace(resume=True), tiny_model) == whole


def _dying(config, model_config, after):
    from training.run import task

    train.prepare(config)
    run = train.Run(config, task.freqmerge(config, model_config))
    steps = iter(range(after + 1))

    def dying(batch, step=run._step):
        if next(steps) == after:
            raise KeyboardInterrupt
        return step(batch)

    run._step = dying
    return run


def test_the_command_prints_and_records_how_many_images_it_makes_a_second(data_dir, tmp_path, capsys):
    flags = f"--data_dir {data_dir} --device cpu --batch_size 50 --image_size 64 --seconds 0.2 --output_dir {tmp_path}"
    loader.main(flags.split())
    (found,) = loader.records.read("loader", tmp_path / "results")
    assert found["loader"] > found["loader_enlarged"] > 10
    assert f"{found['loader']:.0f} images/s; {found['loader_enlarged']:.0f} enlarged to 64" in capsys.readouterr().out
    assert found["command"] == f"python -m training.loader {flags}"


def test_the_speed_is_that_of_the_recipe(data_dir):
    config = TrainConfig(data_dir=data_dir, device="cpu", batch_size=50, rand_augment="rand-m9-n2", workers=0)
    slow = loader.speed(config, ModelConfig(image_size=32), 0.2)
    fast = loader.speed(config.replace(rand_augment=None), ModelConfig(image_size=32), 0.2)
    assert fast["loader"] > 2 * slow["loader"]
    assert len(dataset.source(data_dir).load("train", 32)) == 400
