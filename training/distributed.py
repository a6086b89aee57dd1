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
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import ProcessExitedException
from torch.multiprocessing.spawn import spawn as start_processes
from torch.nn.parallel import DistributedDataParallel

from model.engines.device import pick_device
from model.errors import FreqMergeError
from training import cli
from training.errors import PeerError

Work = Callable[[str], None]
"""What each process does, given the name of its device."""

PATIENCE_S = 1800.0
"""Seconds that a process waits for another one, unless told otherwise."""


def rank() -> int:
    """This process's number, from 0; 0 where there is only one."""
    return distributed.get_rank() if _together() else 0


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _together() else 1


def start(work: Work, device: str, every_gpu: bool, patience_s: float = PATIENCE_S) -> None:
    """Does the work in this process, as a member of torchrun's group, or in one process per visible GPU.

    `device` 'auto' or 'cuda' leaves the choice to us; a device named in full is the only one used.
    """
    if distributed.is_torchelastic_launched():
        mine = _own_device(device, distributed.get_node_local_rank(fallback_rank=0))
        with _group(mine, "env://", patience_s):
            work(mine)
    elif every_gpu and device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        spawn(work, [f"cuda:{index}" for index in range(torch.cuda.device_count())], patience_s)
    else:
        work(device)


def spawn(work: Work, devices: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """Does the work in one new process per device; `work` must survive pickling.

    When one process fails the others are ended, and the exit code of this one becomes the failed one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").resolve().as_uri()
        try:
            start_processes(_member, (work, list(devices), meeting, patience_s), nprocs=len(devices))
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
    return list(sums.tolist())


def together(part: Tensor) -> Tensor:
    """The parts of all processes, equally long, one after the other along the first axis."""
    if size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(size())]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def agree(act: Callable[[], None], device: torch.device) -> None:
    """Returns in every process once the first one has acted.

    What the first one raises, all raise: a `PeerError` with its words in the others.
    """
    if size() == 1:
        act()
        return
    failed: Exception | None = None
    if rank() == 0:
        try:
            act()
        except (FreqMergeError, OSError) as error:
            failed = error
    words = _from_first(repr(failed).encode() if failed and not str(failed) else str(failed or "").encode(), device)
    if words:
        distributed.barrier()  # nobody leaves before all have heard
        raise failed or PeerError(f"{words.decode()} (said by the first process of {size()})")


@contextmanager
def copied(path: Path, device: torch.device) -> Iterator[Path]:
    """The first process's file, in every process: a copy, which is gone afterwards, wherever there may be none."""
    if size() == 1:
        yield path
        return
    content = _from_first(path.read_bytes() if rank() == 0 else b"", device)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        yield copy


def alike(values: Sequence[int], device: torch.device) -> bool:
    """Whether every process has the same numbers."""
    if size() == 1:
        return True
    lowest = torch.tensor(values, device=device)
    highest = lowest.clone()
    distributed.all_reduce(lowest, distributed.ReduceOp.MIN)
    distributed.all_reduce(highest, distributed.ReduceOp.MAX)
    return torch.equal(lowest, highest)


def own_rows(count: int) -> slice:
    """The rows of a shared batch that are this process's; `count` is a multiple of the number of processes."""
    each = count // size()
    return slice(rank() * each, (rank() + 1) * each)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _from_first(content: bytes, device: torch.device) -> bytes:
    """The first process's bytes; those of the others do not matter."""
    length = torch.tensor([len(content)], device=device)
    distributed.broadcast(length, 0)
    if not length.item():
        return b""
    sent = torch.empty(int(length), dtype=torch.uint8, device=device)
    if rank() == 0:
        sent.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(sent, 0)
    return sent.cpu().numpy().tobytes()


def _own_device(device: str, local: int) -> str:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        # a launcher that shows every process one GPU of its own numbers that one 0 in each
        return "cuda:0" if torch.cuda.device_count() == 1 else f"cuda:{local}"
    return "cpu" if device == "auto" else device


def _member(index: int, work: Work, devices: list[str], meeting: str, patience_s: float) -> None:
    def join() -> None:
        with _group(devices[index], meeting, patience_s, index, len(devices)):
            work(devices[index])

    cli.run(join)


@contextmanager
def _group(device: str, meeting: str, patience_s: float, index: int = -1, count: int = -1) -> Iterator[None]:
    place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    patience = timedelta(seconds=patience_s)
    try:
        distributed.init_process_group(backend, meeting, patience, rank=index, world_size=count)
        yield  # after an error no farewell: whoever waits for this process must see that it is gone
        distributed.barrier()
    except RuntimeError as error:
        if not _is_of_peers(error):
            raise
        raise PeerError(
            f"expected every process of the run to answer within {patience_s:g} s, found one that has ended or is "
            f"silent ({str(error).splitlines()[0]}); its own output, on its own machine, says why"
        ) from error
    distributed.destroy_process_group()


def _is_of_peers(error: RuntimeError) -> bool:
    # gloo, unlike NCCL and the store, raises nothing more special
    return isinstance(error, distributed.DistError) or "gloo" in str(error)
