"""The device that a name stands for."""

from __future__ import annotations

import torch

from model.errors import EngineError


def pick_device(name: str) -> torch.device:
    """The device named auto, cpu, cuda or cuda:N; auto is the first CUDA device, else the CPU. Raises `EngineError`."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not count:
            raise EngineError(f"device: expected cpu or auto, as this torch sees no CUDA device, found {name!r}")
        if (device.index or 0) >= count:
            raise EngineError(f"device: expected a CUDA device below {count}, found {name!r}; use device cpu or auto")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise EngineError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    return device
