"""The `openvino` engine: runs a compiled OpenVINO model on a CPU. Needs no torch.

`model.engines.openvino_graph` makes such a model from a checkpoint, with torch; `model.engines.portable` is one that
ships with it. openvino is an extra and is imported by the functions that need it.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from model.engines import artifact
from model.engines.artifact import Origin, Profile
from model.engines.engine import MAX_BATCH_SIZE, EngineOutput, Precision, check_batch
from model.errors import EngineError

log = logging.getLogger(__name__)

NEEDS: dict[Precision, tuple[str, str]] = {
    "fp32": ("FP32", ""),
    "bf16": ("BF16", "AVX512-BF16 or AMX"),
    "int8": ("INT8", "8-bit products"),
}
"""By precision, OpenVINO's name of the capability that it needs, and the instructions behind it."""


def why_not(device: str, precision: Precision = "fp32") -> str | None:
    """Why OpenVINO cannot be used on this device (such as cpu or cuda:0) and in this precision, or None."""
    if device != "cpu":
        return f"it runs on a CPU, and the device is {device}"
    if precision not in NEEDS:
        return f"it computes in {', '.join(NEEDS)}, and the precision is {precision}"
    if find_spec("openvino") is None:
        return "the package openvino is not installed (pip install openvino)"
    capability, instructions = NEEDS[precision]
    # the precision is a hint to the plugin, which would compute in float32 without a word
    if capability not in capabilities():
        return f"this processor does not compute in {precision} ({instructions})"
    return None


def capabilities() -> frozenset[str]:
    """What OpenVINO computes in on this processor, by its own names, such as FP32, BF16 and INT8."""
    return frozenset(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def compiled(graph: Any, precision: Precision) -> bytes:
    """An OpenVINO model, compiled for this processor, as plain bytes; takes seconds."""
    # as bytes: the compiled model itself would read its weights from the memory of whoever made the graph
    return bytes(core().compile_model(graph, "CPU", _options(1, precision)).export_model().getvalue())


def profiled(graph: Any, threads: int, precision: Precision) -> Any:
    """An `openvino.CompiledModel` that times each of its nodes, computing as the engine does."""
    return core().compile_model(graph, "CPU", {**_options(threads, precision), "PERF_COUNT": True})


class OpenVINOEngine:
    """Engine that runs a compiled model, with a pool of threads of its own, which sleep while there is no batch."""

    kind = "openvino"
    device = "cpu"

    def __init__(
        self,
        engine: bytes,
        native_size: int,
        max_batch_size: int,
        threads: int,
        reason: str = "",
        precision: Precision = "fp32",
    ) -> None:
        self.reason = reason
        self.max_batch_size = max_batch_size
        self.native_size = native_size
        self.precision = precision
        self._sizes_run: set[int] = set()
        runtime = core()
        try:
            loaded = runtime.import_model(engine, "CPU", _options(threads, precision))
            self._request = loaded.create_infer_request()
            self._taken = loaded.input(0).get_element_type().to_dtype()
        except Exception as error:  # damaged bytes, too little memory: OpenVINO raises many types
            raise EngineError(f"openvino: the engine could not be loaded: {error}") from error

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch, each unless a batch of that size has run before."""
        for size in sorted({1, self.max_batch_size} - self._sizes_run):
            self.run(np.zeros((size, 3, self.native_size, self.native_size), np.uint8))

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        check_batch(images, self.native_size, self.max_batch_size)
        try:
            logits, scores, owners = self._request.infer([np.ascontiguousarray(images, self._taken)]).values()
        except Exception as error:  # OpenVINO raises RuntimeError and its own types; callers need one
            raise EngineError(f"openvino engine on cpu failed on {len(images)} images: {error}") from error
        self._sizes_run.add(len(images))
        return EngineOutput(logits, scores, owners)


def find_or_build(
    origin: Origin,
    build: Callable[[int], bytes],
    native_size: int,
    max_batch_size: int,
    folder: Path | None,
    threads: int,
    reason: str = "",
) -> OpenVINOEngine:
    """The engine of this origin in the folder, or what `build` gives for 1..its argument images, then kept there.

    Raises `EngineError`.
    """
    largest = max(MAX_BATCH_SIZE, max_batch_size)

    def load(engine: bytes) -> OpenVINOEngine:
        return OpenVINOEngine(engine, native_size, max_batch_size, threads, reason, origin.precision)

    def fresh() -> bytes:
        log.info("compiling %s in %s for this processor; this takes seconds", origin.checkpoint, origin.precision)
        return build(largest)

    profiles = (Profile(best=largest, largest=largest),)
    return artifact.find_engine(origin, max_batch_size, folder, load) or artifact.build_engine(
        origin, profiles, folder, fresh, load
    )


def core() -> Any:
    """OpenVINO's runtime, one for the process and kept to its end; raises `EngineError` where it is not installed.

    With its plugin for CPUs it changes the stack that signal handlers of the calling thread run on, and takes that
    memory back when it goes. Where two are gone in the order in which they came, or one in another thread, the
    thread is left without such a stack, and the next signal (SIGTERM, say) ends the process as a segmentation fault.
    """
    return _core(require())


@functools.cache
def _core(openvino: Any) -> Any:
    return openvino.Core()


def require() -> Any:
    """The package openvino; raises `EngineError` where it is not installed."""
    # It reports imports and conversions to an analytics service unless this companion is missing, for which it has
    # a stub of its own. A service that asks nobody must not do that.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EngineError(
            "openvino cannot be used: the package openvino is not installed (pip install openvino)"
        ) from error
    return openvino


def _options(threads: int, precision: Precision) -> dict[str, Any]:
    return {
        # never left to the plugin, which takes bf16 where the processor has it
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "EXECUTION_MODE_HINT": "PERFORMANCE" if precision == "bf16" else "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits where another process has its core
    }
