"""Engines that run through torch: `eager`, and `inductor`, compiled with torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from model.engines.classifier import Classifier
from model.engines.engine import EngineOutput, check_batch
from model.errors import EngineError
from model.processor import usable_cpus

CUDA_GRAPH_RUNS = 3
"""torch.compile runs a new size once as it is, records its CUDA graph in the second run, replays from the third."""

UNLIMITED = {"recompile_limit": 1 << 16, "accumulated_recompile_limit": 1 << 16}
"""One graph for each size of each engine of the process: torch counts them together, and its ninth is an error."""


class TorchEngine:
    """Engine that runs a `Classifier` through torch, eagerly or compiled.

    Compiled, it has one graph for every power of two up to the largest batch, and for that one; a batch is filled up
    to the next of them, so that serving never compiles. On CUDA these are CUDA graphs, replayed from one thread:
    the one that warmed them up.
    """

    def __init__(
        self, classifier: Classifier, kind: str, device: torch.device, max_batch_size: int, reason: str = ""
    ) -> None:
        self.kind = kind
        self.device = str(device)
        self.precision = classifier.precision
        self.reason = reason
        self.max_batch_size = max_batch_size
        self.native_size = side = classifier.input_stage.native_size
        self._device = device
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        # page-locked memory is copied to the GPU without a detour; kept, because locking pages takes long
        self._staged = torch.zeros(max_batch_size, 3, side, side, dtype=torch.uint8, pin_memory=self._cuda)
        module = classifier.to(device).eval()
        if self._cuda:
            torch.cuda.synchronize(device)  # the weights arrive before the engine's own stream reads them
        self._sizes = bucket_sizes(max_batch_size) if kind == "inductor" else ()
        if kind == "inductor":
            _few_compile_workers()
        self._call = (
            torch.compile(module, fullgraph=True, dynamic=False, mode="reduce-overhead" if self._cuda else None)
            if kind == "inductor"
            else module
        )

    def warm_up(self) -> None:
        """Runs every batch size that is compiled for, or the smallest and largest one if none is."""
        if not self._sizes:
            self._run_blank((1, self.max_batch_size))
            return
        with torch._dynamo.config.patch(UNLIMITED):
            self._run_blank(self._sizes * (CUDA_GRAPH_RUNS if self._cuda else 1))

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        check_batch(images, self.native_size, self.max_batch_size)
        count = len(images)
        try:
            with torch.inference_mode(), self._on_stream():
                if self._cuda and self._sizes:
                    torch.compiler.cudagraph_mark_step_begin()  # the last answer is copied: its memory may be reused
                output = self._call(self._on_device(torch.from_numpy(images)))
                return host_arrays(output[:3], count)
        except Exception as error:  # torch raises many types; callers need one
            raise EngineError(f"{self.kind} engine on {self.device} failed on {count} images: {error}") from error

    def _run_blank(self, sizes: tuple[int, ...]) -> None:
        for size in sorted(sizes, reverse=True):  # the largest first: the others fit into its memory
            self.run(np.zeros((size, 3, self.native_size, self.native_size), np.uint8))

    def _on_device(self, images: Tensor) -> Tensor:
        # rows that fill up a bucket hold older images; no image of a batch influences another
        count = len(images)
        self._staged[:count].copy_(images)
        size = next((size for size in self._sizes if size >= count), count)
        return self._staged[:size].to(self._device, non_blocking=True)

    def _on_stream(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()


def _few_compile_workers() -> None:
    """As many processes that compile as this container may use processors; torch counts those of the whole host."""
    from torch._inductor import config  # takes a second to import, and only this engine needs it

    config.compile_threads = min(config.compile_threads or 1, usable_cpus())


def bucket_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and that one."""
    powers = [1 << k for k in range(max_batch_size.bit_length()) if 1 << k < max_batch_size]
    return (*powers, max_batch_size)


def host_arrays(parts: Sequence[Tensor], count: int) -> EngineOutput:
    """Logits, scores and source maps of the first `count` images, copied to the host once they are computed."""
    logits, scores, owners = (part[:count].cpu().numpy() for part in parts)
    return EngineOutput(
        logits.astype(np.float32, copy=False),
        scores.astype(np.float32, copy=False),
        owners.astype(np.int64, copy=False),
    )
