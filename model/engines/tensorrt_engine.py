"""The `tensorrt` engine: one engine for any batch, built by Torch-TensorRT, kept as bytes, run by TensorRT itself.

Torch-TensorRT's own runtime is not used: it does not look at what a launch returns (pytorch/TensorRT, issue 4481 and
pull request 4662), and goes on with whatever lies in the memory of the answer. tensorrt and torch_tensorrt are imported
by the functions that need them, for they need NVIDIA's libraries. Every call is held against the signatures in the
wheels by tests/model/engines/test_tensorrt_calls.py; docs/reference/engines.md says what has run.
"""

from __future__ import annotations

import importlib
import logging
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from model.checkpoint import Checkpoint
from model.engines import artifact
from model.engines.artifact import Profile
from model.engines.classifier import classifier_of
from model.engines.engine import EngineOutput, Precision, check_batch, engine_errors
from model.engines.program import INPUTS, OUTPUTS, exported
from model.engines.torch_engine import host_arrays
from model.errors import EngineError

log = logging.getLogger(__name__)

OLDEST = (2, 14)
"""First torch-tensorrt whose calls these are: an older one ignores the names of inputs and outputs without a word."""

TUNED = (1, 8)
"""Batch sizes with a profile of their own, beside the largest."""

UNWRITTEN = -2
"""What a source map holds before a launch: an engine writes -1 or more, so a launch that wrote nothing is found out."""

TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
}
"""TensorRT's names of what an answer may consist of."""


def why_not(device: torch.device) -> str | None:
    """Why TensorRT cannot be used on this device, or None."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and the device is {device.type}"
    if find_spec("torch_tensorrt") is None:
        return "the package torch-tensorrt is not installed (extra gpu)"
    return None


def profiles(largest: int) -> tuple[Profile, ...]:
    """One for single pictures, one up to 8 and one up to the largest batch, each tuned for the largest of its own."""
    # at least two: an exported graph of one batch size would not be dynamic
    ends = [*(size for size in TUNED if size < max(largest, 2)), max(largest, 2)]
    return tuple(
        Profile(smallest=before + 1, best=end, largest=end) for before, end in zip([0, *ends[:-1]], ends, strict=True)
    )


def build(checkpoint: Checkpoint, precision: Precision, device: torch.device, sizes: tuple[Profile, ...]) -> bytes:
    """A serialised TensorRT engine of the whole graph; takes minutes. Raises `EngineError` if any part does not fit.

    Changes the precision and the device of the checkpoint's model. Float32 is float32 in it, without TF32.
    """
    _check_usable(device)
    torch_tensorrt = _builder()
    with engine_errors(f"tensorrt: {checkpoint.manifest.name} could not be built"), torch.cuda.device(device):
        classifier = classifier_of(checkpoint, precision).to(device)
        side = classifier.input_stage.native_size
        images = torch_tensorrt.Input(profiles=[_shapes(size, side) for size in sizes], dtype=torch.uint8)
        engine: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            exported(classifier, sizes[-1].largest),
            arg_inputs=[images],
            arg_input_binding_names=INPUTS,
            output_binding_names=OUTPUTS,
            device=device,
            disable_tf32=True,  # score, matching and indices are promised in float32
            require_full_compilation=True,  # this call never falls back to torch; the flag keeps it so
            attn_bias_is_causal=False,  # the default may take the log-size bias for a causal mask
        )
        return bytes(engine)


def create(
    checkpoint: Checkpoint,
    precision: Precision,
    device: torch.device,
    max_batch_size: int,
    folder: Path | None,
    reason: str = "",
) -> TensorRTEngine:
    """The engine that lies in the folder, or one that is built now and kept there; raises `EngineError`."""
    _check_usable(device)
    _imported("tensorrt")  # before anything is loaded: its library missing is no fault of an engine
    origin = artifact.origin_of(checkpoint, precision, device)
    sizes = profiles(max_batch_size)
    side = checkpoint.manifest.preprocess.native_size

    def fresh() -> bytes:
        log.info("building a TensorRT engine of %s in %s; this takes minutes", origin.checkpoint, precision)
        return build(checkpoint, precision, device, sizes)

    load = partial(
        TensorRTEngine,
        native_size=side,
        precision=precision,
        device=device,
        max_batch_size=max_batch_size,
        reason=reason,
    )
    engine = artifact.find_engine(origin, max_batch_size, folder, load)
    if engine is not None:
        return engine
    _builder()  # before a long build is announced, or its failure remembered
    return artifact.build_engine(origin, sizes, folder, fresh, load, remember=True)


class TensorRTEngine:
    """Engine that runs a serialised TensorRT engine, on a stream of its own.

    It has one execution context for each optimisation profile, so that a batch never waits for a change of profile,
    and memory for the largest batch whose addresses stay the same.
    """

    kind = "tensorrt"

    def __init__(
        self,
        engine: bytes,
        native_size: int,
        precision: Precision,
        device: torch.device,
        max_batch_size: int,
        reason: str = "",
    ) -> None:
        _check_usable(device)
        self.device = str(device)
        self.precision = precision
        self.reason = reason
        self.max_batch_size = max_batch_size
        self.native_size = native_size
        self._device = device
        trt = _imported("tensorrt")
        with engine_errors(f"tensorrt: the engine could not be loaded on {device}"), torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            shape = (max_batch_size, 3, native_size, native_size)
            self._staged = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
            self._images = torch.zeros(shape, dtype=torch.uint8, device=device)
            self._log = _logger(trt)  # TensorRT keeps only a pointer to it
            self._runtime = trt.Runtime(self._log)
            self._engine = self._loaded(engine)
            self._check_names(trt)
            self._outputs = tuple(self._room(name) for name in OUTPUTS)
            self._ranges = [self._range(index) for index in range(self._engine.num_optimization_profiles)]
            self._contexts = [self._context(index) for index in range(len(self._ranges))]
            torch.cuda.synchronize(device)  # the memory is zero before the engine's own stream writes to it
        if not any(self._fits(index, 1) for index in range(len(self._ranges))) or not any(
            self._fits(index, max_batch_size) for index in range(len(self._ranges))
        ):
            raise EngineError(f"tensorrt: expected an engine for 1..{max_batch_size} images, found {self._ranges}")

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch of every profile."""
        for size in self.sizes:
            self.run(np.zeros((size, 3, self.native_size, self.native_size), np.uint8))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Smallest and largest batch of every profile, as far as batches may be so large."""
        ends = {size for both in self._ranges for size in both if size <= self.max_batch_size}
        return tuple(sorted(ends | {self.max_batch_size}))

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        check_batch(images, self.native_size, self.max_batch_size)
        count = len(images)
        with (
            engine_errors(f"tensorrt engine on {self.device} failed on {count} images"),
            torch.inference_mode(),
            torch.cuda.device(self._device),
            torch.cuda.stream(self._stream),
        ):
            self._staged[:count].copy_(torch.from_numpy(images))
            self._images[:count].copy_(self._staged[:count], non_blocking=True)
            self._outputs[-1][:count].fill_(UNWRITTEN)
            self._launch(count)
            output = host_arrays(self._outputs, count)
        if (output.source_maps == UNWRITTEN).any():
            raise EngineError(f"tensorrt engine on {self.device} left the answers of {count} images unwritten")
        return output

    def _launch(self, count: int) -> None:
        context = self._contexts[next(index for index in range(len(self._ranges)) if self._fits(index, count))]
        shape = (count, *self._images.shape[1:])
        self._expect(context.set_input_shape(INPUTS[0], shape), f"the input shape {shape}")
        self._expect(context.execute_async_v3(self._stream.cuda_stream), f"the launch of {count} images")

    def _loaded(self, engine: bytes) -> Any:
        loaded = self._runtime.deserialize_cuda_engine(engine)
        self._expect(loaded is not None, "the engine")
        return loaded

    def _check_names(self, trt: Any) -> None:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        taken = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        if taken != set(INPUTS) or set(names) != {*INPUTS, *OUTPUTS}:
            raise EngineError(f"tensorrt: expected an engine from {INPUTS} to {OUTPUTS}, found {names}")

    def _room(self, name: str) -> Tensor:
        """Memory for one part of the answer for the largest batch."""
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in TYPES:
            raise EngineError(f"tensorrt: expected {name} of type {', '.join(TYPES)}, found {kind}")
        _, *shape = self._engine.get_tensor_shape(name)
        return torch.zeros((self.max_batch_size, *shape), dtype=TYPES[kind], device=self._device)

    def _range(self, index: int) -> tuple[int, int]:
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUTS[0], index)
        return int(smallest[0]), int(largest[0])

    def _fits(self, index: int, count: int) -> bool:
        smallest, largest = self._ranges[index]
        return smallest <= count <= largest

    def _context(self, index: int) -> Any:
        """An execution context for one profile, with the addresses of what goes in and comes out."""
        context = self._engine.create_execution_context()
        self._expect(context is not None, "an execution context")
        stream = self._stream.cuda_stream
        self._expect(context.set_optimization_profile_async(index, stream), f"profile {index}")
        for name, part in zip((*INPUTS, *OUTPUTS), (self._images, *self._outputs), strict=True):
            self._expect(context.set_tensor_address(name, part.data_ptr()), f"the address of {name}")
        return context

    def _expect(self, taken: bool, what: str) -> None:
        """Raises `EngineError` with TensorRT's own last words unless TensorRT has taken what it was given."""
        if not taken:
            words = self._log.last or "without a reason"
            raise EngineError(f"tensorrt on {self.device}: TensorRT refused {what}: {words}")


def _shapes(profile: Profile, side: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}_shape": (size, 3, side, side)
        for name, size in (("min", profile.smallest), ("opt", profile.best), ("max", profile.largest))
    }


def _check_usable(device: torch.device) -> None:
    reason = why_not(device)
    if reason is not None:
        raise EngineError(f"tensorrt cannot be used: {reason}")


def _imported(name: str) -> Any:
    """The package; raises `EngineError` for whatever its import raises, such as a library that is not there."""
    with engine_errors(f"tensorrt cannot be used: the package {name} cannot be imported"):
        return importlib.import_module(name)


def _builder() -> Any:
    """The package torch_tensorrt; raises `EngineError`."""
    torch_tensorrt = _imported("torch_tensorrt")
    found = str(torch_tensorrt.__version__)
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise EngineError(f"tensorrt: expected torch-tensorrt {OLDEST[0]}.{OLDEST[1]} or newer, found {found}")
    return torch_tensorrt


def _logger(trt: Any) -> Any:
    """TensorRT's messages in our log; the last error is kept, for TensorRT says no more than that it refuses."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,  # it is talkative
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # only its wheel knows the type
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity, logging.ERROR)
            if level >= logging.ERROR:
                self.last = msg
            log.log(level, "TensorRT: %s", msg)

    return Logger()
