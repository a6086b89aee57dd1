"""A stand-in for tensorrt and torch_tensorrt: the same calls, which run the exported graph on the CPU.

It has what `model.engines.tensorrt_engine` uses and no more; tests/model/engines/test_tensorrt_calls.py holds its
methods against those of the wheels. It is as strict as TensorRT: shapes outside a context's profile, addresses that are
not set and profiles that are not there are refused with False, and an engine of another version is not deserialised.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import io
import json
import sys
import types
from collections.abc import Sequence
from typing import Any

import pytest
import torch

MAGIC = b"stand-in engine "
VERSION = "11.1.0.106"


class Severity(enum.Enum):
    """TensorRT's five."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """Base of loggers."""

    Severity = Severity

    def log(self, severity: Severity, msg: str) -> None:
        """Takes a message."""
        raise NotImplementedError


class DataType(enum.Enum):
    """Types of what goes in and comes out."""

    FLOAT = torch.float32
    INT64 = torch.int64
    UINT8 = torch.uint8


class TensorIOMode(enum.Enum):
    """What a name is for."""

    INPUT = 1
    OUTPUT = 2


class Fault:
    """What goes wrong next, and what was seen; one for all engines of a test."""

    def __init__(self) -> None:
        self.refuse_launches = False
        """Launches return False and write nothing."""
        self.skip_launches = False
        """Launches return True and write nothing."""
        self.answer_other: bool = False
        """Launches answer for the pictures in reverse order."""
        self.refuse_engines = 0
        """How many engines are not deserialised any more."""
        self.build_error: Exception | None = None
        self.builds: list[dict[str, Any]] = []
        self.devices: list[int] = []
        """The current device, whenever an engine was deserialised."""
        self.launches: list[tuple[int, int]] = []
        """Profile and batch size."""


class Runtime:
    """Deserialises engines."""

    fault = Fault()

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """The engine, or None and a message."""
        self.fault.devices.append(torch.cuda.current_device())
        version, _, rest = serialized_engine.removeprefix(MAGIC).partition(b"\n")
        if not serialized_engine.startswith(MAGIC) or version.decode() != VERSION or self.fault.refuse_engines:
            self.fault.refuse_engines = max(0, self.fault.refuse_engines - 1)
            self._logger.log(Severity.ERROR, "the engine plan file is not compatible with this version of TensorRT")
            return None
        told, _, program = rest.partition(b"\n")
        return ICudaEngine(json.loads(told), torch.export.load(io.BytesIO(program)), self._logger, self.fault)


class ICudaEngine:
    """An engine: names, types, shapes and profiles."""

    def __init__(self, told: dict[str, Any], program: Any, logger: ILogger, fault: Fault) -> None:
        self.told, self.logger, self.fault = told, logger, fault
        self.module = program.module()
        self.num_optimization_profiles = len(told["profiles"])
        self.num_io_tensors = len(told["tensors"])

    def get_tensor_name(self, index: int) -> str:
        """Inputs first."""
        return list(self.told["tensors"])[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Whether it goes in."""
        return TensorIOMode.INPUT if name in self.told["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        """Its type."""
        return DataType[self.told["tensors"][name][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Its shape, -1 for the batch."""
        return tuple(self.told["tensors"][name][1])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        """Smallest, best and largest shape."""
        profile = self.told["profiles"][profile_index]
        return [tuple(profile[f"{end}_shape"]) for end in ("min", "opt", "max")]

    def create_execution_context(self) -> IExecutionContext:
        """A context in profile 0."""
        return IExecutionContext(self)


class IExecutionContext:
    """Shapes and addresses of one launch after the other."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Takes another profile, for which shapes have to be set anew."""
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._refuse(f"there is no profile {profile_index}")
        self._profile, self._shape = profile_index, None
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Refuses what the profile does not hold."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, self._profile)
        ends = list(zip(smallest, shape, largest, strict=True))
        if not all(low <= given <= high for low, given, high in ends):
            return self._refuse(f"{shape} is outside profile {self._profile}")
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Remembers an address."""
        self._addresses[name] = memory
        return name in self._engine.told["tensors"]

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Runs the exported graph and writes where the addresses say."""
        fault, told = self._engine.fault, self._engine.told
        if self._shape is None or self._addresses.keys() != told["tensors"].keys():
            return self._refuse("a shape or an address is not set")
        if fault.refuse_launches:
            return self._refuse("the launch failed")
        fault.launches.append((self._profile, self._shape[0]))
        if fault.skip_launches:
            return True
        [taken] = told["inputs"]
        with torch.inference_mode():
            images = _memory(self._addresses[taken], self._shape, torch.uint8).clone()
            parts = self._engine.module(images.flip(0) if fault.answer_other else images)
            names = [name for name in told["tensors"] if name != taken]
            for name, part in zip(names, parts, strict=True):
                kind = self._engine.get_tensor_dtype(name).value
                _memory(self._addresses[name], tuple(part.shape), kind).copy_(part)
        return True

    def _refuse(self, words: str) -> bool:
        self._engine.logger.log(Severity.ERROR, words)
        return False


def _memory(address: int, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
    count = torch.Size(shape).numel()
    raw = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=kind, count=count).view(shape)


class Input:
    """One input of a graph, with its profiles."""

    def __init__(self, *, profiles: Sequence[dict[str, tuple[int, ...]]], dtype: torch.dtype) -> None:
        self.profiles, self.dtype = list(profiles), dtype


def convert_exported_program_to_serialized_trt_engine(
    exported_program: Any,
    *,
    arg_inputs: Sequence[Input],
    arg_input_binding_names: Sequence[str],
    output_binding_names: Sequence[str],
    device: torch.device,
    disable_tf32: bool = False,
    require_full_compilation: bool = False,
    attn_bias_is_causal: bool = True,
) -> bytes:
    """The engine: profiles and names, then the program."""
    fault = Runtime.fault
    fault.builds.append({"device": device, "tf32": not disable_tf32, "current": torch.cuda.current_device()})
    if fault.build_error is not None:
        raise fault.build_error
    [images] = arg_inputs
    values = [node.meta["val"] for node in exported_program.graph.output_node().args[0]]
    shapes = {
        arg_input_binding_names[0]: (images.dtype, images.profiles[0]["min_shape"]),
        **{name: (value.dtype, value.shape) for name, value in zip(output_binding_names, values, strict=True)},
    }
    told = {
        "inputs": list(arg_input_binding_names),
        "profiles": images.profiles,
        "tensors": {
            name: (DataType(kind).name, [-1, *(int(size) for size in shape[1:])])
            for name, (kind, shape) in shapes.items()
        },
    }
    written = io.BytesIO()
    torch.export.save(exported_program, written)
    return MAGIC + VERSION.encode() + b"\n" + json.dumps(told).encode() + b"\n" + written.getvalue()


def install(patch: pytest.MonkeyPatch) -> Fault:
    """Puts both packages in the place of the real ones, and returns what can go wrong in them."""
    trt: Any = _module("tensorrt")
    builder: Any = _module("torch_tensorrt")
    for thing in (ILogger, Runtime, TensorIOMode):
        setattr(trt, thing.__name__, thing)
    builder.__version__ = "2.14.0"
    builder.Input = Input
    builder.dynamo = types.SimpleNamespace(
        convert_exported_program_to_serialized_trt_engine=convert_exported_program_to_serialized_trt_engine
    )
    for module in (trt, builder):
        patch.setitem(sys.modules, module.__name__, module)
    fault = Fault()
    patch.setattr(Runtime, "fault", fault)
    return fault


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    return module
