"""A CUDA that is the CPU: torch's own calls, so that the code for CUDA runs unchanged where there is no GPU.

Every tensor that is asked for on `cuda:N` is made on the CPU, and nothing is page-locked. Streams and devices note what
was asked of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode


class _OnCPU(TorchFunctionMode):
    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {name: self._moved(value) for name, value in (kwargs or {}).items()}
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return func(*(self._moved(value) for value in args), **kwargs)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == "cuda":
            self._cuda.used.add(str(value))
            return torch.device("cpu")
        return value


class FakeStream:
    """A stream that has a number and nothing to wait for."""

    cuda_stream = 7

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Nothing runs."""


class FakeCuda:
    """GPUs that are the CPU, each with a name."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.used: set[str] = set()
        """Devices on which tensors were asked for."""
        self.current = 0
        """The current device."""
        self.broken: Exception | None = None
        """What every wait for the device raises."""

    def synchronize(self, device: object = None) -> None:
        """Waits for nothing, or raises the error that sticks."""
        if self.broken is not None:
            raise self.broken

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """Makes a device the current one."""
        before, self.current = self.current, device.index or 0
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        """Makes a stream, and so its device, the current one."""
        with self.device(stream.device):
            yield


@contextmanager
def fake_cuda(patch: pytest.MonkeyPatch, *names: str) -> Iterator[FakeCuda]:
    """GPUs of these names, as long as the block and the monkeypatch last."""
    cuda = FakeCuda(*names)
    for name, double in {
        "is_available": lambda: True,
        "device_count": lambda: len(cuda.names),
        "get_device_name": lambda device: cuda.names[device.index],
        "get_device_capability": lambda device: (9, device.index),
        "current_device": lambda: cuda.current,
        "synchronize": cuda.synchronize,
        "Stream": FakeStream,
        "device": cuda.device,
        "stream": cuda.stream,
    }.items():
        patch.setattr(torch.cuda, name, double)
    with _OnCPU(cuda):
        yield cuda
