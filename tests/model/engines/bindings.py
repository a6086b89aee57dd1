"""`python -m tests.model.engines.bindings WHEEL`: what TensorRT's Python bindings say about their calls, as JSON.

`pip download tensorrt-cu13-bindings --no-deps` fetches the wheel. Its extension module is imported beside empty
libraries in the place of NVIDIA's, which needs a C compiler and no GPU: pybind11 writes the signatures when a module is
imported, and nothing of TensorRT runs. Only names and types are kept.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("tensorrt.json")

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""What the bindings take from the libraries; none is called."""

CALLS = {
    "Runtime": ("__init__", "deserialize_cuda_engine"),
    "ICudaEngine": (
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
        "num_optimization_profiles",
    ),
    "IExecutionContext": (
        "execute_async_v3",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    ),
}
"""What this repository uses."""


def facts(wheel: Path) -> dict[str, Any]:
    """Version, signatures of the calls, and the names of types, severities and modes."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        _stand_ins(Path(folder) / "tensorrt_bindings", wheel.name.split("-")[1].split(".")[0])
        sys.path.insert(0, folder)
        trt: Any = importlib.import_module("tensorrt_bindings")
        return {
            "wheel": wheel.name,
            "version": trt.__version__,
            "calls": {
                kind: {name: _signatures(getattr(getattr(trt, kind), name)) for name in names}
                for kind, names in CALLS.items()
            },
            "DataType": list(trt.DataType.__members__),
            "Severity": list(trt.ILogger.Severity.__members__),
            "TensorIOMode": list(trt.TensorIOMode.__members__),
        }


def _stand_ins(folder: Path, major: str) -> None:
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS), encoding="ascii")
    for name in LIBRARIES:
        library = folder / f"lib{name}.so.{major}"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)


def _signatures(member: Any) -> list[dict[str, Any]] | str:
    """Parameters and result of every overload, or that it is a property."""
    if isinstance(member, property):
        return "property"
    name = member.__name__
    found = re.findall(rf"^(?:\d+\. )?{name}\((self: .*)\) -> (.*)$", member.__doc__, flags=re.MULTILINE)
    return [
        {"parameters": re.findall(r"(?:^|, )(\w+): ", told)[1:], "returns": result.rpartition(".")[2]}
        for told, result in found
    ]


if __name__ == "__main__":
    told = facts(Path(sys.argv[1]))
    FACTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{FACTS.name}: {told['wheel']}")
