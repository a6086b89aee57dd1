import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from model import ModelConfig, load_checkpoint
from training import cli, distributed, train
from training.config import TrainConfig
from training.data.images import Images
from training.errors import DataError, PeerError, ResumeError
from training.run import identity, task

TORCHRUN = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node=2 -m training.train".split()]
MODEL = (
    "--image_size 32 --threads 1 --device cpu --no_amp --backbone vit_tiny_patch16_224 "
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


RECIPE = "--epochs 3 --lr 3e-3 --warmup_epochs 0.5 --mixup 0.4 --cutmix 1 --random_erasing 0.3 --ema_decay 0.9"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


@contextmanager
def two_nodes(tmp_path, data_dir, further):
    """Two torchruns that share nothing but an address: each has its own copy of the data and its own outputs."""
    port, nodes = free_port(), []
    for rank in (0, 1):
        own = tmp_path / f"node{rank}"
        if not (own / "data").exists():
            shutil.copytree(data_dir, own / "data")
        program = [*TORCHRUN[:3], "--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1"]
        program += ["--master_addr=127.0.0.1", f"--master_port={port}", "-m", "training.train"]
        words = [*program, *flags(own / "data", own / "run", f"{further} --batch_size 20")]
        nodes.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        yield nodes
    finally:
        for node in nodes:
            node.terminate()
            node.communicate(timeout=60)


def ended(nodes):
    """What both nodes said, and their exit codes."""
    said = [node.communicate(timeout=120) for node in nodes]
    return [err for _, err in said], [node.returncode for node in nodes]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def stopped(output_dir, data_dir, steps):
    """The state of a single process that was killed after so many steps."""
    config, model_config = configs(flags(data_dir, output_dir, f"{RECIPE} --batch_size 40"))
    train.prepare(config)
    run = train.Run(config, task.freqmerge(config, model_config))
    for number, batch in enumerate(run.loader.epoch(0)):
        if number == steps:
            break
        run._step(batch)
        run.progress.step += 1
    run.save_state()
    return config.state_path


def configs(words):
    parsed = cli.parser("", "", TrainConfig, ModelConfig).parse_args(words)
    return TrainConfig(**cli.given(TrainConfig, parsed)), ModelConfig(**cli.given(ModelConfig, parsed))


@pytest.fixture(scope="session")
def alone(data_dir, tmp_path_factory):
    """Outputs of one process that was never stopped."""
    output_dir = tmp_path_factory.mktemp("alone")
    train.main(flags(data_dir, output_dir, f"{RECIPE} --batch_size 40"))
    return output_dir


def assert_alike(found, wanted):
    for together, by_one in zip(history(found), history(wanted), strict=True):
        assert together == pytest.approx(by_one, rel=1e-4)
    expected, weighed = weights(wanted), weights(found)
    assert all(torch.allclose(weighed[key], value, atol=1e-4) for key, value in expected.items())


@pytest.mark.slow
def test_two_nodes_go_on_with_what_one_process_began_and_only_the_first_has_and_writes_files(alone, data_dir, tmp_path):
    state = stopped(tmp_path / "node0" / "run", data_dir, steps=4)
    assert state.is_file()
    with two_nodes(tmp_path, data_dir, f"{RECIPE} --resume") as nodes:
        said, codes = ended(nodes)
    assert codes == [0, 0], "\n".join(said)
    assert "resumes after 0 epochs and 4 steps" in said[0]
    assert files(tmp_path / "node1") == files(tmp_path / "node1" / "data"), "the second node has written nothing"
    assert_alike(tmp_path / "node0" / "run", alone)


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_nodes_began_to_the_numbers_of_a_run_never_stopped(alone, data_dir, tmp_path):
    killed = tmp_path / "node0" / "run"
    with two_nodes(tmp_path, data_dir, f"{RECIPE} --save_every_s 1e-9") as nodes:
        until(lambda: (killed / "logs" / "training_history.json").exists() or nodes[0].poll() is not None)
    assert 0 < len(history(killed)) < 3, "killed too late to show anything"
    with pytest.raises(
        ResumeError, match="expected steps of 40 images, .* found 20; in 1 process that is --batch_size 40"
    ):
        train.main(flags(data_dir, killed, f"{RECIPE} --batch_size 20 --resume"))
    train.main(flags(data_dir, killed, f"{RECIPE} --batch_size 40 --resume"))
    assert_alike(killed, alone)


@pytest.mark.slow
def test_without_a_state_on_the_first_node_all_say_so_and_end(data_dir, tmp_path):
    stopped(tmp_path / "node1" / "run", data_dir, steps=1)  # where nobody looks
    with two_nodes(tmp_path, data_dir, f"{RECIPE} --resume") as nodes:
        said, codes = ended(nodes)
    assert codes == [1, 1], "torchrun's code for a process that failed"
    for one in said:
        assert "error: resume: expected the state of a run at" in one
        assert "node0" in one


@pytest.mark.slow
def test_a_node_without_its_data_ends_the_other_one_too(data_dir, tmp_path):
    (tmp_path / "node1" / "data").mkdir(parents=True)
    with two_nodes(tmp_path, data_dir, RECIPE) as nodes:
        said, codes = ended(nodes)
    assert codes == [1, 1]
    assert "error: data_dir: expected train-*.parquet" in said[1]
    assert "error: expected every process of the run to answer within 1800 s, found one that has ended" in said[0]


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
    own = folder / f"own{rank}"
    own.write_bytes(bytes([rank]) * 3)
    with distributed.copied(own, torch.device(device)) as copy:
        copied = list(copy.read_bytes())
    found = {
        "copied": copied,
        "alike": [distributed.alike([7, number], torch.device(device)) for number in (3, rank)],
        "agreed": said(lambda: distributed.agree(partial(refusing, rank), torch.device(device))),
        "images": said(
            lambda: identity.refuse_other_images(Images(pixels, torch.tensor([1, 2])), torch.device(device))
        ),
        "total": distributed.total([1.0, rank], torch.device(device)),
        "together": distributed.together(pixels).tolist(),
        "rows": list(range(8))[distributed.own_rows(8)],
        "weight": model.weight.item(),
        "gradient": model.weight.grad.item(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


def refusing(rank):
    raise ResumeError(f"process {rank} refuses")


def said(act):
    """The error's type and words."""
    try:
        act()
    except (DataError, PeerError, ResumeError) as error:
        return [type(error).__name__, str(error)]
    return None


def failing(device):
    """The second process fails while the first waits for it."""
    if distributed.rank() == 1:
        raise DataError("nothing to train on")
    distributed.total([1.0], torch.device(device))


@pytest.mark.slow
def test_spawned_processes_sum_gather_agree_and_average_gradients(tmp_path):
    distributed.spawn(partial(summed, tmp_path), ["cpu", "cpu"])
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["copied"] == [0, 0, 0]
        assert found["alike"] == [True, False]
        assert found["agreed"][0] == ("ResumeError" if rank == 0 else "PeerError")
        assert found["agreed"][1].startswith("process 0 refuses")
        assert found["images"][0] == "DataError"
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
    assert distributed.alike([1], device)
    with pytest.raises(DataError, match="as it was"):
        distributed.agree(refuse_as_it_was, device)


def refuse_as_it_was():
    raise DataError("as it was")


@pytest.mark.parametrize(("processes", "advice"), [(2, "in 2 processes that is --batch_size 20"), (3, "as divide 40")])
def test_a_run_may_change_its_processes_but_not_the_images_of_a_step(monkeypatch, processes, advice):
    monkeypatch.setattr(distributed, "size", lambda: processes)
    before = {"batch_size": 20, "processes": 2}  # as states told it first
    identity.refuse_other_run(before, {identity.STEP: 40})
    with pytest.raises(ResumeError, match=advice):
        identity.refuse_other_run(before, {identity.STEP: 20 * processes + 1})


def test_without_torchrun_a_named_device_is_the_only_one_used():
    seen = []
    distributed.start(seen.append, "cpu", every_gpu=True)
    assert seen == ["cpu"]
