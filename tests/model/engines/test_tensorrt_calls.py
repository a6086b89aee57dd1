"""Every use of torch_tensorrt in this repository against the signatures that its wheel declares."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from model.engines import tensorrt_engine
from model.errors import EngineError
from tests.model.engines.bindings import FACTS
from tests.model.engines.operators import facts
from tests.support import standin_tensorrt

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


def bindings():
    return json.loads(FACTS.read_text(encoding="utf-8"))


def asked_of_tensorrt():
    """Every method and property that the engine asks of a runtime, an engine or a context, by name."""
    tree = ast.parse(Path(tensorrt_engine.__file__).read_text(encoding="utf-8"))
    owners = {"context", "engine", "self._engine", "self._runtime"}
    return {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners
    }


def test_every_call_of_tensorrt_is_one_that_its_bindings_declare():
    declared = {name for calls in bindings()["calls"].values() for name in calls}
    assert asked_of_tensorrt() == declared - {"__init__"}


def test_tensorrt_says_by_what_it_returns_whether_it_has_taken_something():
    context = bindings()["calls"]["IExecutionContext"]
    for name in ("execute_async_v3", "set_input_shape", "set_optimization_profile_async", "set_tensor_address"):
        assert {one["returns"] for one in context[name]} == {"bool"}


def test_the_stand_in_has_the_calls_and_parameters_of_the_bindings():
    for kind, calls in bindings()["calls"].items():
        for name, told in calls.items():
            if told == "property":
                continue
            own = list(inspect.signature(getattr(getattr(standin_tensorrt, kind), name)).parameters)[1:]
            assert any(one["parameters"][: len(own)] == own for one in told), (kind, name)
    assert [one.name for one in standin_tensorrt.Severity] == bindings()["Severity"]
    assert {one.name for one in standin_tensorrt.TensorIOMode} <= set(bindings()["TensorIOMode"])
    assert {one.name for one in standin_tensorrt.DataType} | set(tensorrt_engine.TYPES) <= set(bindings()["DataType"])


def test_the_bindings_are_of_a_version_that_torch_tensorrt_requires():
    [required] = [Requirement(line) for line in facts()["requires"] if line.startswith("tensorrt-cu13-bindings")]
    assert bindings()["version"] in required.specifier


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
