"""`python -m tests.model.engines.wheel WHEEL`: what a torch-tensorrt wheel says about itself, as JSON.

`pip download torch-tensorrt --no-deps` fetches the wheel. It is read as a zip file, its sources by their syntax
trees, so that neither TensorRT nor a GPU is needed and nothing of it runs. Only names are kept, no code.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("torch_tensorrt.json")

CONVERTERS = ("aten_ops_converters", "ops_evaluators", "prims_ops_converters")
"""Modules that register converters for torch's own operators; the custom ones are for collectives."""
LOWERING = "torch_tensorrt/dynamo/lowering"
SIGNATURES = {
    "torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine": (
        "torch_tensorrt/dynamo/_compiler.py",
        "convert_exported_program_to_serialized_trt_engine",
    ),
    "torch_tensorrt.Input": ("torch_tensorrt/_Input.py", "Input"),
}
"""Public name of every callable that this repository uses, and where it is defined."""


def facts(wheel: Path) -> dict[str, Any]:
    """Version, converters, decompositions and signatures of a wheel."""
    with zipfile.ZipFile(wheel) as archive:

        def tree(path: str) -> ast.Module:
            return ast.parse(archive.read(path))

        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required = [
            line.removeprefix("Requires-Dist: ")
            for line in archive.read(metadata).decode().splitlines()
            if line.startswith("Requires-Dist: ") and "extra ==" not in line
        ]
        registered = [tree(f"torch_tensorrt/dynamo/conversion/{name}.py") for name in CONVERTERS]
        return {
            "wheel": wheel.name,
            "version": wheel.name.split("-")[1],
            "requires": required,
            "converters": _converters(registered),
            "decompositions": _decompositions(
                tree(f"{LOWERING}/_decomposition_groups.py"), tree(f"{LOWERING}/_decompositions.py")
            ),
            "removed": _aten_names(tree(f"{LOWERING}/passes/remove_assert_nodes.py")),
            "signatures": {name: _signature(tree(path), item) for name, (path, item) in SIGNATURES.items()},
        }


def _converters(trees: list[ast.Module]) -> dict[str, list[dict[str, bool]]]:
    """For each operator the converters registered for it: do they take dynamic shapes, do they look at the node."""
    found: dict[str, list[dict[str, bool]]] = {}
    for call in _calls(trees, "dynamo_tensorrt_converter"):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        dynamic = given.get("supports_dynamic_shapes")
        found.setdefault(_name(call.args[0]), []).append(
            {
                "dynamic": isinstance(dynamic, ast.Constant) and dynamic.value is True,
                "validator": "capability_validator" in given,
            }
        )
    return dict(sorted(found.items()))


def _decompositions(groups: ast.Module, custom: ast.Module) -> dict[str, list[str]]:
    """Operators that torch's decompositions replace, that stay whole, that Torch-TensorRT replaces by its own."""
    sets = {
        target.id: node.value
        for tree in (groups, custom)
        for node in ast.walk(tree)
        for target in _targets(node)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Set)
    }
    own = [
        *_calls([custom], "register_torch_trt_decomposition"),
        *(call for call in _calls([custom], "replace_inplace_op") if len(call.args) == 2),
    ]
    return {
        "torch": _names(sets["torch_enabled_decompositions"]),
        "kept": _names(sets["torch_disabled_decompositions"]),
        "attention": _names(sets["ATTENTION_DECOMPOSITION_OPS"]),
        "own": sorted({_name(call.args[0]) for call in own} - {"aten_op"}),
    }


def _aten_names(tree: ast.Module) -> list[str]:
    """Every `torch.ops.aten.<name>.<overload>` of a file."""
    told = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    prefix = "torch.ops.aten."
    return sorted(name.removeprefix("torch.ops.") for name in told if name.startswith(prefix) and name.count(".") == 4)


def _signature(tree: ast.Module, name: str) -> dict[str, list[str]]:
    """Parameters of a function or a class's constructor; for **kwargs the keys that its body reads."""
    item = next(node for node in tree.body if getattr(node, "name", None) == name)
    if isinstance(item, ast.ClassDef):
        methods = [node for node in item.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        item = methods[0]
    assert isinstance(item, ast.FunctionDef)
    named = [argument.arg for argument in (*item.args.args, *item.args.kwonlyargs) if argument.arg != "self"]
    return {"parameters": named, "read_from_kwargs": _keys_read(item)}


def _keys_read(function: ast.FunctionDef) -> list[str]:
    """Every "key" of `kwargs["key"]` and `kwargs.get("key")`."""
    subscripts = {
        node.slice.value
        for node in ast.walk(function)
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "kwargs"
        and isinstance(node.slice, ast.Constant)
    }
    asked = {
        node.args[0].value
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "kwargs.get"
        and isinstance(node.args[0], ast.Constant)
    }
    return sorted(str(key) for key in subscripts | asked)


def _calls(trees: list[ast.Module], name: str) -> list[ast.Call]:
    return [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name and node.args
    ]


def _targets(node: ast.AST) -> list[ast.Name]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target for target in targets if isinstance(target, ast.Name)]


def _names(display: ast.expr | None) -> list[str]:
    assert isinstance(display, ast.Set)
    return sorted(_name(element) for element in display.elts)


def _name(expression: ast.expr) -> str:
    """As torch prints it: `aten.add.Tensor`, `operator.getitem`."""
    return ast.unparse(expression).removeprefix("torch.ops.")


if __name__ == "__main__":
    told = facts(Path(sys.argv[1]))
    FACTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{FACTS.name}: {len(told['converters'])} operators of {told['wheel']}")
