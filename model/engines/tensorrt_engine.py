"""The `tensorrt` engine: one TensorRT engine for any batch, built by Torch-TensorRT and kept as plain bytes.

torch_tensorrt is imported by the functions that need it, for it needs NVIDIA's libraries. Every call is held against
the signatures in the torch-tensorrt wheel by
tests/model/engines/test_tensorrt_calls.py; docs/reference/engines.md says what has run.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from model.checkpoint import Checkpoint
from model.engines import artifact
from model.engines.artifact import Profile
from model.engines.classifier import classifier_of
from model.engines.engine import EngineOutput, Precision, check_batch
from model.engines.program import INPUTS, OUTPUTS, exported
from model.engines.torch_engine import host_arrays
from model.errors import EngineError

log = logging.getLogger(__name__)

OLDEST = (2, 14)
"""First torch-tensorrt whose calls these are: an older one ignores the names of inputs and outputs without a word."""


def why_not(device: torch.device) -> str | None:
    """Why TensorRT cannot be used on this device, or None."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and the device is {device.type}"
    if find_spec("torch_tensorrt") is None:
        return "the package torch-tensorrt is not installed (extra gpu)"
    return None


def build(checkpoint: Checkpoint, precision: Precision, device: torch.device, profile: Profile | None = None) -> bytes:
    """A serialised TensorRT engine of the whole graph; takes minutes. Raises `EngineError` if any part does not fit.

    Changes the precision and the device of the checkpoint's model.
    """
    _require(device)
    import torch_tensorrt

    sizes = profile or Profile()
    classifier = classifier_of(checkpoint, precision).to(device)
    side = classifier.input_stage.native_size
    images = torch_tensorrt.Input(
        min_shape=(sizes.smallest, 3, side, side),
        opt_shape=(sizes.best, 3, side, side),
        max_shape=(sizes.largest, 3, side, side),
        dtype=torch.uint8,
    )
    try:
        with torch.cuda.device(device):
            engine: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                exported(classifier, sizes.largest),
                arg_inputs=[images],
                arg_input_binding_names=INPUTS,
                output_binding_names=OUTPUTS,
                require_full_compilation=True,  # this call never falls back to torch; the flag keeps it so
                attn_bias_is_causal=False,  # the default may take the log-size bias for a causal mask
            )
    except Exception as error:  # torch, Torch-TensorRT and TensorRT raise many types; callers need one
        raise EngineError(f"tensorrt: {checkpoint.manifest.name} could not be built: {error}") from error
    return bytes(engine)


class TensorRTEngine:
    """Engine that runs a serialised TensorRT engine with Torch-TensorRT's runtime, on a stream of its own."""

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
        _require(device)
        import torch_tensorrt

        self.device = str(device)
        self.precision = precision
        self.reason = reason
        self.max_batch_size = max_batch_size
        self.native_size = native_size
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._staged = torch.zeros(max_batch_size, 3, native_size, native_size, dtype=torch.uint8, pin_memory=True)
        try:
            with torch.cuda.device(device):  # the runtime takes the current device
                self._module = torch_tensorrt.dynamo.runtime.TorchTensorRTModule(
                    serialized_engine=engine,
                    input_binding_names=list(INPUTS),
                    output_binding_names=list(OUTPUTS),
                    name="freqmerge",
                )
        except Exception as error:  # a foreign engine, too little memory: TensorRT raises many types
            raise EngineError(f"tensorrt: the engine could not be loaded on {device}: {error}") from error

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch."""
        for size in (1, self.max_batch_size):
            self.run(np.zeros((size, 3, self.native_size, self.native_size), np.uint8))

    def run(self, images: UInt8[np.ndarray, "batch 3 native native"]) -> EngineOutput:
        """The answer for 1..max_batch_size images; raises `EngineError`."""
        check_batch(images, self.native_size, self.max_batch_size)
        count = len(images)
        try:
            with torch.inference_mode(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                self._staged[:count].copy_(torch.from_numpy(images))
                return host_arrays(self._module(self._staged[:count].to(self._device, non_blocking=True)), count)
        except Exception as error:  # torch and TensorRT raise many types; callers need one
            raise EngineError(f"tensorrt engine on {self.device} failed on {count} images: {error}") from error


def cached(
    checkpoint: Checkpoint, precision: Precision, device: torch.device, max_batch_size: int, folder: Path | None
) -> bytes:
    """The engine that lies in the folder, or one that is built now and kept there; raises `EngineError`."""
    origin = artifact.origin_of(checkpoint, precision, device)
    profile = Profile(best=min(64, max_batch_size), largest=max(256, max_batch_size))

    def fresh() -> bytes:
        _require(device)  # before a long build is announced
        log.info("building a TensorRT engine of %s in %s; this takes minutes", origin.checkpoint, precision)
        return build(checkpoint, precision, device, profile)

    return artifact.cached(origin, profile, max_batch_size, folder, fresh)


def _require(device: torch.device) -> None:
    reason = why_not(device)
    if reason is not None:
        raise EngineError(f"tensorrt cannot be used: {reason}")
    import torch_tensorrt

    found = str(torch_tensorrt.__version__)
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise EngineError(f"tensorrt: expected torch-tensorrt {OLDEST[0]}.{OLDEST[1]} or newer, found {found}")
