"""Every use of torch_tensorrt in this repository against the signatures that its wheel declares."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.engines import tensorrt_engine
from model.errors import EngineError
from tests.model.engines.operators import facts

SOURCES = [path for name in ("model", "service", "training") for path in sorted(Path(name).rglob("*.py"))]


def uses(source):
    """Dotted names that start with torch_tensorrt, each with the keywords of its call, None where it is not called."""
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name.startswith("torch_tensorrt.") and id(node) not in inner:
            call = calls.get(id(node))
            yield name, None if call is None else [keyword.arg for keyword in call.keywords]


def wrong(source):
    """Names and keywords that the wheel does not declare; what lands in **kwargs unread counts as undeclared."""
    signatures, found = facts()["signatures"], []
    for name, keywords in uses(source):
        if name == "torch_tensorrt.__version__":
            continue
        known = signatures.get(name)
        declared = known["parameters"] + known["read_from_kwargs"] if known else []
        found += [name] if known is None else [f"{name}({word}=)" for word in keywords or [] if word not in declared]
    return found


def test_every_call_of_torch_tensorrt_is_one_that_the_wheel_declares():
    sources = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    called = {name for source in sources.values() for name, keywords in uses(source) if keywords is not None}
    assert called == set(facts()["signatures"])
    assert {str(path): wrong(source) for path, source in sources.items() if wrong(source)} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torch_tensorrt.Input(min_shape=1, dtype=2)", []),
        ("torch_tensorrt.Input(minimum=1)", ["torch_tensorrt.Input(minimum=)"]),
        ("torch_tensorrt.save(x, 'y')", ["torch_tensorrt.save"]),
        (
            "torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(p, enabled_precisions={h})",
            ["torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(enabled_precisions=)"],
        ),
    ],
)
def test_the_check_finds_a_wrong_name_or_keyword(line, found):
    assert wrong(line) == found


def test_nothing_of_torch_tensorrt_is_imported_with_the_package():
    program = "import sys, model.export; print('torch_tensorrt' in sys.modules, 'tensorrt' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_an_engine_is_not_built_without_a_gpu(tmp_path):
    with pytest.raises(EngineError, match="tensorrt cannot be used: it needs a CUDA device, and the device is cpu"):
        tensorrt_engine.TensorRTEngine(b"", 32, "fp16", torch.device("cpu"), 1)
    program = [sys.executable, "-m", "model.export", "--engine", "tensorrt", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert done.stderr.startswith(
        "error: tensorrt: expected a machine that can build an engine; it needs a CUDA device"
    )
