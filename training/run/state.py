"""The resumable state of a run in one safetensors file: no pickle, written all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import files
from training.errors import ResumeError

TENSOR = "tensor"


def save(
    path: Path, modules: dict[str, dict[str, Tensor]], optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Writes named state dicts, the optimizer's state and JSON facts (epoch, step, history, config)."""
    tensors = {f"{name}/{key}": value for name, state in modules.items() for key, value in state.items()}
    inner = optimizer.state_dict()
    for index, slots in inner["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    # some optimizers (lamb) count their steps in tensors inside the groups
    run_json = json.dumps({**facts, "param_groups": inner["param_groups"]}, default=_to_json)
    with files.replacing(path) as temporary:
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
            temporary,
            {"run": run_json},
        )


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict[str, Any]]:
    """State dicts by name, the optimizer's state dict, and the facts; raises `ResumeError`."""
    with _opened(path) as opened:
        run_facts = _facts(opened)
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
    modules: dict[str, dict[str, Tensor]] = {}
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, rest = key.split("/", 1)
        if name == "optimizer":
            index, slot = rest.split("/", 1)
            slots.setdefault(int(index), {})[slot] = tensor
        else:
            modules.setdefault(name, {})[rest] = tensor
    return modules, {"state": slots, "param_groups": run_facts.pop("param_groups")}, run_facts


def facts(path: Path) -> dict[str, Any]:
    """The facts alone, without reading the tensors; raises `ResumeError`."""
    with _opened(path) as opened:
        return _facts(opened)


def _facts(opened: Any) -> dict[str, Any]:
    run_facts: dict[str, Any] = json.loads((opened.metadata() or {})["run"], object_hook=_from_json)
    return run_facts


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise ResumeError(f"resume: expected the state of a run at {path}, found none; start without --resume")
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ResumeError(f"resume: expected the state of a run in {path}, found a damaged file ({error})") from error


def _to_json(value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        raise TypeError(f"expected JSON values and tensors in the state of a run, found {type(value).__name__}")
    return {TENSOR: value.tolist()}


def _from_json(item: dict[str, Any]) -> Any:
    return torch.tensor(item[TENSOR]) if item.keys() == {TENSOR} else item
