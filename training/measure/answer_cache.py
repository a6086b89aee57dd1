"""Answers kept on disk, so that a study that was stopped goes on, and several studies measure a shared row once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import model
from model import files
from training.data.images import Images

TENSOR, RECIPE = "logits", "recipe"


class AnswerCache:
    """A folder with one file per recipe; the recipe is whatever the answers depend on, as JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(
        self, recipe: Mapping[str, Any], measure: Callable[[], Float[Tensor, "count classes"]]
    ) -> Float[Tensor, "count classes"]:
        """The kept answers of this recipe, or what `measure` gives, which is kept from then on.

        A file that cannot be read, or holds something else, is measured anew and replaced.
        """
        recipe_text = json.dumps(recipe, sort_keys=True)
        path = self.folder / f"{sha256(recipe_text.encode()).hexdigest()[:32]}.safetensors"
        answers = _read(path, recipe_text)
        if answers is None:
            answers = measure()
            with files.replacing(path) as temporary:
                save_file({TENSOR: answers.contiguous()}, temporary, {RECIPE: recipe_text})
        return answers


def _read(path: Path, recipe: str) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.get_tensor(TENSOR) if (opened.metadata() or {}).get(RECIPE) == recipe else None
    except (OSError, SafetensorError):
        return None


def surroundings() -> dict[str, str]:
    """What every answer depends on beside its recipe: torch, the vector instructions it uses, and our model's code."""
    sources = sha256()
    root = Path(model.__file__).parent
    for path in sorted(root.rglob("*.py")):
        sources.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "cpu": capability, "code": sources.hexdigest()}


def digest(images: Images) -> str:
    """SHA-256 of the pixels, in their order."""
    return sha256(images.pixels.numpy().tobytes()).hexdigest()
