"""The device that a name stands for, and whether it still works."""

from __future__ import annotations

import torch

from model.errors import EngineError

NO_DRIVER = "Found no NVIDIA driver"
"""How torch begins to say that this is no machine for CUDA at all."""


def pick_device(name: str) -> torch.device:
    """The device named auto, cpu, cuda or cuda:N; auto is the first CUDA device, else the CPU. Raises `EngineError`."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            explanation = f" ({words})" if (words := why_no_cuda()) else ""
            raise EngineError(
                f"device: expected cpu or auto, as this torch sees no CUDA device{explanation}, found {name!r}"
            )
        if (device.index or 0) >= count:
            raise EngineError(f"device: expected a CUDA device below {count}, found {name!r}; use device cpu or auto")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    return device


def why_no_cuda() -> str:
    """torch's own words, one sentence, for why it has no CUDA device; empty where it has one or was built without."""
    if torch.version.cuda is None:
        return ""
    try:
        torch.cuda.init()
    except Exception as error:  # an old driver, no driver, none that is visible: torch raises several types
        return str(error).partition(". ")[0].rstrip(".")
    return ""


def hidden_cuda() -> str:
    """`why_no_cuda`, where there is a driver, so that somebody may wonder why the CPU computes; else empty."""
    words = why_no_cuda()
    return "" if words.startswith(NO_DRIVER) else words


def exact_float32() -> None:
    """Makes float32 on CUDA mean float32 in this process: without TF32, which keeps 10 bits of a factor's mantissa.

    torch switches it off for matrix products but on for cuDNN's convolutions, such as the one that embeds patches.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def probe(device: torch.device) -> None:
    """Returns when a small computation on the device gives what it should; raises `EngineError` where it does not.

    After a CUDA error that sticks, such as an illegal memory access, every later call of the process raises it again:
    then only a new process helps. Waits for what the device is busy with.
    """
    try:
        with torch.inference_mode():
            total = int(torch.ones(64, dtype=torch.int32, device=device).sum().item())
    except Exception as error:  # torch raises many types; callers need one
        raise EngineError(f"the device {device} does not compute any more: {error}; start the process anew") from error
    if total != 64:
        raise EngineError(f"the device {device} computes wrong: expected 64, found {total}; start the process anew")
