"""A full disk and a kill while saving: what was there before stays whole."""

import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from model import load_checkpoint
from training import train
from training.errors import SaveError
from training.run import task


@contextmanager
def full_disk():
    """Every file of this process may grow to 64 KB and no further, as on a disk that is full.

    Not a fixture: pytest reports a test's result before it ends the fixtures, and its own output may be a longer file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signalled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signalled)


def finished(config, model_config):
    train.train(config, model_config)
    return {path: path.read_bytes() for path in (config.checkpoint_path, config.state_path)}


def test_a_full_disk_is_a_clear_error_and_leaves_the_last_good_files(recipe, tiny_model):
    config = recipe.replace(epochs=1)
    before = finished(config, tiny_model)
    train.prepare(config)
    run = train.Run(config, task.freqmerge(config, tiny_model))
    run._epoch()
    with full_disk():
        with pytest.raises(SaveError, match=r"best_model\.safetensors could not .*File too large.* untouched.*start"):
            run._end_epoch()
        with pytest.raises(SaveError, match=r"last_state\.safetensors could not be written .* nothing can be resumed"):
            run.save_state()
        run.saved = "1 epoch and 0 steps"
        with pytest.raises(SaveError, match=r"last_state\.safetensors could not be written .* go on with --resume"):
            run.save_state()
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in config.checkpoint_path.parent.iterdir()) == [
        "best_model.safetensors",
        "last_state.safetensors",
    ], "half-written files are removed"


@pytest.mark.slow
def test_a_kill_while_saving_leaves_a_checkpoint_and_a_state_that_load(data_dir, tmp_path):
    flags = (
        f"--data_dir {data_dir} --output_dir {tmp_path} --epochs 1000 --batch_size 200 --image_size 32 --threads 1 "
        "--device cpu --save_every_s 1e-9 --backbone vit_tiny_patch16_224 "
        "--backbone_args patch_size=16 embed_dim=384 depth=2 num_heads=2 --merge_layers 1 --val_fraction 0"
    )
    program = [sys.executable, "-m", "training.train", *flags.split()]
    run = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    folder, end = tmp_path / "checkpoints", time.monotonic() + 120
    try:
        while not _stopped_in_a_save(run, folder):
            assert run.poll() is None
            assert time.monotonic() < end
    finally:
        run.kill()
        run.wait()
    assert load_checkpoint(folder / "best_model.safetensors").manifest.training["epoch"] >= 1
    modules, _, facts = train.state.load(folder / "last_state.safetensors")
    assert set(modules) == {"model"}
    assert facts["progress"]["step"] + facts["progress"]["epoch"] > 0
    assert list(folder.glob(".*.tmp"))
    again = subprocess.run([*program, "--overwrite", "--epochs", "1"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert not list(folder.glob(".*.tmp")), "the next run removes what the killed one left half written"


def _stopped_in_a_save(run, folder):
    """Whether the process, held for a moment, has a file half written beside a whole checkpoint."""
    if not ((folder / "best_model.safetensors").exists() and list(folder.glob(".*.tmp"))):
        return False
    run.send_signal(signal.SIGSTOP)
    if list(folder.glob(".*.tmp")):
        return True
    run.send_signal(signal.SIGCONT)
    return False
