"""Which part of the model each node of its OpenVINO graph belongs to, so that a profile of nodes says where time goes.

The functions of `model.merging` are marked while the graph is exported (`torch.fx.traceback.annotate`), modules are
known by their names, and OpenVINO names its nodes after those of the exported program. What it adds or fuses under
another name belongs to whatever takes its output.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar
from unittest import mock

from torch import fx
from torch.fx.traceback import annotate, preserve_node_meta

from model.checkpoint import Checkpoint
from model.engines import openvino_engine
from model.engines.classifier import classifier_of
from model.engines.program import exported
from model.merging.strategies import STRATEGIES
from model.vit import merging_vit

INPUT, ATTENTION, MLP, NORM, RESIDUAL, HEAD = "pixels and patches", "attention", "MLP", "LayerNorm", "residuals", "head"
SCORE, MATCHING, MERGE, MAP, SIZES = "scores", "matching", "weighted mean", "source maps", "log sizes"
OTHER = "other"
PARTS = (INPUT, ATTENTION, MLP, NORM, RESIDUAL, HEAD, SCORE, MATCHING, MERGE, MAP, SIZES, OTHER)
MERGING = (SCORE, MATCHING, MERGE, MAP, SIZES)
"""The parts that merging adds to the plain model."""

_MARK = "freqmerge_part"
_MODULES = (
    (re.compile(r"\.attn\b"), ATTENTION),
    (re.compile(r"\.mlp\b"), MLP),
    (re.compile(r"\.norm\w*$"), NORM),
)
_PLACES = (
    (re.compile(r"\.(input_stage|patch_embed)\b"), INPUT),
    (re.compile(r"\.blocks\.\d+\b"), RESIDUAL),
    (re.compile(r"\.(head|fc_norm)\b"), HEAD),
)
Function = TypeVar("Function", bound=Callable[..., Any])


def parts_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The part of each node of the exported program that OpenVINO converts, by the node's name.

    Makes the checkpoint's model float32. Raises `EngineError` where OpenVINO is not installed.
    """
    openvino_engine.require()
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with _marked(checkpoint), preserve_node_meta():
        program = exported(classifier_of(checkpoint, "fp32"))
        logging.disable(logging.WARNING)  # it warns of decompositions that it does not find
        try:
            decomposed = TorchFXPythonDecoder.from_exported_program(program).pt_module
        finally:
            logging.disable(logging.NOTSET)
    return {node.name: _part(node) for node in decomposed.graph.nodes if node.op != "placeholder"}


def owners(compiled: Any, parts: Mapping[str, str]) -> dict[str, str]:
    """The part of each node that a compiled OpenVINO model runs, by the name in its profile."""
    nodes = compiled.get_runtime_model().get_ordered_ops()
    owner_by_name: dict[str, str] = {}
    for node in nodes:
        name = node.get_friendly_name()
        if part := next((parts[origin] for origin in _origins(node) if origin in parts), None):
            owner_by_name[name] = part
    for node in reversed(nodes):  # consumers come before what they consume
        name = node.get_friendly_name()
        if name not in owner_by_name:
            takers = (
                taker.get_node().get_friendly_name() for out in node.outputs() for taker in out.get_target_inputs()
            )
            owner_by_name[name] = next((owner_by_name[taker] for taker in takers if taker in owner_by_name), OTHER)
    return owner_by_name


def _origins(node: Any) -> Iterator[str]:
    """Names of the exported program's nodes that a node of the compiled model was made of, its own name first."""
    info = node.get_rt_info()
    fused = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
    for name in (node.get_friendly_name(), *fused.split(",")):
        yield re.sub(r"^stub_\d+_", "", name.split("/")[0])


def _part(node: fx.Node) -> str:
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    module = f".{stack[-1]}" if stack else ""
    mark: str | None = (node.meta.get("custom") or {}).get(_MARK)
    return _first(_MODULES, module) or mark or _first(_PLACES, module) or OTHER


def _first(patterns: tuple[tuple[re.Pattern[str], str], ...], module: str) -> str | None:
    return next((part for pattern, part in patterns if pattern.search(module)), None)


@contextmanager
def _marked(checkpoint: Checkpoint) -> Iterator[None]:
    """What merging does says so in the nodes that are exported inside."""
    name = checkpoint.model.config.scoring
    strategy = STRATEGIES[name]
    marked = replace(
        strategy,
        score=_marking(SCORE, strategy.score),
        assign=_marking(MATCHING, strategy.assign),
        combine=_marking(MERGE, strategy.combine),
    )
    functions = (("score_values", SCORE), ("assignment_matrix", MERGE), ("merge_rotary", MERGE), ("follow", MAP))
    methods = (("_size_bias", SIZES), ("_attend", ATTENTION))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(STRATEGIES, {name: marked}))
        for owner, names in ((merging_vit, functions), (merging_vit.Merging, methods)):
            for function, part in names:
                stack.enter_context(mock.patch.object(owner, function, _marking(part, getattr(owner, function))))
        yield


def _marking(part: str, function: Function) -> Function:
    def marking(*arguments: Any, **named: Any) -> Any:
        with annotate({_MARK: part}):
            return function(*arguments, **named)

    return marking  # type: ignore[return-value]
