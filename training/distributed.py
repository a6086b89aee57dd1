"""Several processes that train one model: who is here, how they start, and sums over all of them.

Under torchrun (one or many nodes) the processes are already there; without it one is started per visible GPU.
Alone, every function here is the identity.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessExitedException
from torch.multiprocessing.spawn import spawn as start_processes
from torch.nn.parallel import DistributedDataParallel

from model.engine import pick_device
from training import cli

Work = Callable[[str], None]
"""What each process does, given the name of its device."""


def rank() -> int:
    """This process's number, from 0; 0 where there is only one."""
    return distributed.get_rank() if _together() else 0


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _together() else 1


def start(work: Work, device: str, every_gpu: bool) -> None:
    """Does the work in this process, as a member of torchrun's group, or in one process per visible GPU.

    `device` 'auto' or 'cuda' leaves the choice to us; a device named in full is the only one used.
    """
    if distributed.is_torchelastic_launched():
        mine = _own_device(device, distributed.get_node_local_rank(fallback_rank=0))
        with _group(mine, "env://"):
            work(mine)
    elif every_gpu and device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        spawn(work, [f"cuda:{index}" for index in range(torch.cuda.device_count())])
    else:
        work(device)


def spawn(work: Work, devices: Sequence[str]) -> None:
    """Does the work in one new process per device; `work` must survive pickling.

    When one process fails the others are ended, and the exit code of this one becomes the failed one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").resolve().as_uri()
        try:
            start_processes(_member, (work, list(devices), meeting), nprocs=len(devices))
        except ProcessExitedException as error:
            sys.exit(error.exit_code)  # the process has told why


def share(module: nn.Module, device: torch.device) -> nn.Module:
    """The module, its gradients averaged over all processes, and its weights the first process's."""
    if size() == 1:
        return module
    ids = [device.index] if device.type == "cuda" else None
    # no buffer of ours changes; torch 2.13 gave the argument another name and warns of the old one
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    still: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, device_ids=ids, **still)


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value summed over all processes."""
    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return [float(value) for value in sums]


def together(part: Tensor) -> Tensor:
    """The parts of all processes, equally long, one after the other along the first axis."""
    if size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(size())]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def own_rows(count: int) -> slice:
    """The rows of a shared batch that are this process's; `count` is a multiple of the number of processes."""
    each = count // size()
    return slice(rank() * each, (rank() + 1) * each)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _own_device(device: str, local: int) -> str:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{local}"
    return "cpu" if device == "auto" else device


def _member(index: int, work: Work, devices: list[str], meeting: str) -> None:
    def join() -> None:
        with _group(devices[index], meeting, index, len(devices)):
            work(devices[index])

    cli.run(join)


@contextmanager
def _group(device: str, meeting: str, index: int = -1, count: int = -1) -> Iterator[None]:
    place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=meeting, rank=index, world_size=count)
    yield  # after an error the others may wait for ever: no farewell then, the launcher ends them
    distributed.barrier()
    distributed.destroy_process_group()
