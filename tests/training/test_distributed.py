import json
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import pytest
import torch

from model import load_checkpoint
from training import distributed, train
from training.errors import DataError

TORCHRUN = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=2 -m training.train".split()]
MODEL = (
    "--image_size 32 --threads 1 --device cpu --backbone vit_tiny_patch16_224 "
    "--backbone_args patch_size=8 embed_dim=48 depth=2 num_heads=3 --merge_layers 1"
)


def flags(data_dir, output_dir, further):
    return f"--data_dir {data_dir} --output_dir {output_dir} {MODEL} {further}".split()


def history(output_dir):
    return json.loads((output_dir / "logs" / "training_history.json").read_text())


def by_two(words):
    """Trains in two processes."""
    done = subprocess.run([*TORCHRUN, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def weights(output_dir):
    return load_checkpoint(output_dir / "checkpoints" / "best_model.safetensors").model.state_dict()


RECIPE = "--epochs 2 --lr 3e-3 --warmup_epochs 0.5 --mixup 0.4 --cutmix 1 --random_erasing 0.3"


@pytest.mark.slow
def test_two_processes_follow_the_loss_curve_of_one_with_the_doubled_batch(data_dir, tmp_path):
    train.main(flags(data_dir, tmp_path / "one", f"{RECIPE} --batch_size 40"))
    by_two(flags(data_dir, tmp_path / "two", f"{RECIPE} --batch_size 20"))
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(one) == len(two) == 2
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, rel=1e-4)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(found[key], value, atol=1e-4) for key, value in expected.items())


@pytest.mark.slow
def test_two_processes_that_were_killed_resume_to_the_same_numbers(data_dir, tmp_path):
    recipe = "--epochs 4 --batch_size 10 --lr 1e-3 --ema_decay 0.9 --drop_path 0.1"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    by_two(flags(data_dir, whole, recipe))
    run = subprocess.Popen(
        [*TORCHRUN, *flags(data_dir, killed, f"{recipe} --save_every_s 1e-9")], stderr=subprocess.DEVNULL
    )
    until(lambda: (killed / "logs" / "training_history.json").exists() or run.poll() is not None)
    run.send_signal(signal.SIGTERM)  # torchrun ends its processes, wherever they are
    assert run.wait(60) != 0
    assert len(history(killed)) < 4, "killed too late to show anything"
    by_two(flags(data_dir, killed, f"{recipe} --resume"))
    assert history(killed) == history(whole)
    expected, found = weights(whole), weights(killed)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.slow
def test_resuming_with_another_number_of_processes_is_refused(data_dir, tmp_path):
    recipe = "--epochs 1 --batch_size 40"
    train.main(flags(data_dir, tmp_path, recipe))
    words = flags(data_dir, tmp_path, f"{recipe} --resume")
    done = subprocess.run([*TORCHRUN, *words], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "processes: saved 1, given 2" in done.stderr


def until(happened):
    """Returns when something has happened on disk, which nobody announces."""
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def summed(folder, device):
    """What one spawned process does: every collective, its findings written to a file."""
    rank = distributed.rank()
    pixels = torch.full((2, 3), rank, dtype=torch.uint8)
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(5.0 + rank)  # the first process's weight is the one that counts
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # users would see a warning of torch's once per process
        shared = distributed.share(model, torch.device(device))
    shared(torch.tensor([[1.0 + 2 * rank]])).sum().backward()
    found = {
        "total": distributed.total([1.0, rank], torch.device(device)),
        "together": distributed.together(pixels).tolist(),
        "rows": list(range(8))[distributed.own_rows(8)],
        "weight": model.weight.item(),
        "gradient": model.weight.grad.item(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


def failing(device):
    """The second process fails while the first waits for it."""
    if distributed.rank() == 1:
        raise DataError("nothing to train on")
    distributed.total([1.0], torch.device(device))


@pytest.mark.slow
def test_spawned_processes_sum_gather_and_average_gradients(tmp_path):
    distributed.spawn(partial(summed, tmp_path), ["cpu", "cpu"])
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["total"] == [2.0, 1.0]
        assert found["together"] == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
        assert found["rows"] == [4 * rank, 4 * rank + 1, 4 * rank + 2, 4 * rank + 3]
        assert (found["weight"], found["gradient"]) == (5.0, 2.0)


@pytest.mark.slow
def test_when_one_spawned_process_fails_all_end_with_its_message_and_code(capfd):
    with pytest.raises(SystemExit) as ended:
        distributed.spawn(failing, ["cpu", "cpu"])
    assert ended.value.code == 2
    assert "error: nothing to train on" in capfd.readouterr().err


def test_a_single_process_is_its_own_group():
    tensor = torch.arange(4)
    module = torch.nn.Linear(1, 1)
    device = torch.device("cpu")
    assert (distributed.rank(), distributed.size()) == (0, 1)
    assert distributed.together(tensor) is tensor
    assert distributed.share(module, device) is module
    assert distributed.total([0.1, 3.0], device) == [0.1, 3.0]
    assert tensor[distributed.own_rows(4)].tolist() == [0, 1, 2, 3]


def test_without_torchrun_a_named_device_is_the_only_one_used():
    seen = []
    distributed.start(seen.append, "cpu", every_gpu=True)
    assert seen == ["cpu"]
