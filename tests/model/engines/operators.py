"""Which operators of an exported program Torch-TensorRT could not convert, by the facts read from its wheel."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch._export.utils import _collect_all_valid_cia_ops_for_aten_namespace, _get_decomp_for_cia
from torch._ops import OpOverload
from torch.export import ExportedProgram

from tests.model.engines.wheel import FACTS

aten = torch.ops.aten

OWN: dict[OpOverload, Callable[..., Any]] = {
    aten.alias.default: lambda x: x,
    aten.reciprocal.default: lambda x: aten.div(1, x),
    aten.rsqrt.default: lambda x: 1 / aten.sqrt(x),
    aten.view.default: lambda x, size: aten._reshape_copy.default(x, size),
}
"""What Torch-TensorRT puts in place of an operator, where that is not torch's own decomposition."""


def facts() -> dict[str, Any]:
    """What `tests.model.engines.wheel` read."""
    told: dict[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))
    return told


def lowered(program: ExportedProgram) -> ExportedProgram:
    """The program after the decompositions that Torch-TensorRT runs first."""
    names = facts()["decompositions"]
    kept = {*names["kept"], *names["attention"]}
    composite = {op: _get_decomp_for_cia(op) for op in _collect_all_valid_cia_ops_for_aten_namespace()}
    return program.run_decompositions(
        {
            **get_decompositions([_operator(name) for name in names["torch"]]),
            **{op: how for op, how in composite.items() if str(op) not in kept},
            **OWN,
        }
    )


def operators(program: ExportedProgram) -> set[str]:
    """Names of all operators that the program calls, in subgraphs too."""
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return {_name(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}


def unconverted(names: set[str]) -> set[str]:
    """Those without a converter that takes a dynamic batch; assertions, which Torch-TensorRT removes, aside."""
    told = facts()
    taken = {name for name, converters in told["converters"].items() if any(one["dynamic"] for one in converters)}
    return names - taken - set(told["removed"])


def replaced_otherwise(names: set[str]) -> set[str]:
    """Those that Torch-TensorRT decomposes in its own way and `OWN` does not: the check would be of another graph."""
    own = {name for name in facts()["decompositions"]["own"] if not name.startswith("aten.scaled_dot_product")}
    return {name for name in names if name in own or name.rpartition(".")[0] in own}


def _operator(name: str) -> Any:
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _name(target: Any) -> str:
    return str(target) if isinstance(target, OpOverload) else f"{target.__module__.lstrip('_')}.{target.__name__}"
