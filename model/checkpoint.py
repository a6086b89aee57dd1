"""Checkpoints: one safetensors file that explains itself, one writer, one reader, no pickle.

The file's metadata holds the manifest as JSON: model config, preprocessing, class names, scores, versions
and a SHA-256 over all of that and every tensor.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import files
from model._version import __version__
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError
from model.images.preprocess import Preprocess
from model.labels import CLASS_NAMES, SUPERCLASSES
from model.manifest import FORMAT, METADATA_KEY, Manifest
from model.vit.merging_vit import FreqMergeViT, build

PICKLED = (".pth", ".pt", ".bin", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: its manifest, and its model in evaluation mode, float32, on the CPU."""

    manifest: Manifest
    model: FreqMergeViT
    path: Path


class Configured(Protocol):
    """What is saved: any module that knows its `ModelConfig`."""

    @property
    def config(self) -> ModelConfig: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def save_checkpoint(
    path: str | Path,
    model: Configured,
    *,
    name: str | None = None,
    preprocess: Preprocess | None = None,
    class_names: Sequence[str] = CLASS_NAMES,
    superclasses: Sequence[str] = SUPERCLASSES,
    scores: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
    certain_from: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Manifest:
    """Writes model and manifest to `path` in one step, and returns the manifest.

    `dtype` is the stored type of floating weights; loading gives float32 again. Raises `ConfigError` if
    the class names do not fit the head. A failed write leaves an older file of that name untouched.
    """
    path = Path(path)
    classes = model.config.num_classes
    if len(class_names) != classes or len(superclasses) not in (0, classes):
        raise ConfigError(
            f"class_names: expected {classes} names (and {classes} superclasses or none), "
            f"found {len(class_names)} names and {len(superclasses)} superclasses"
        )
    state = {key: _stored(tensor, dtype) for key, tensor in model.state_dict().items()}
    draft = Manifest(
        name=name or path.stem,
        digest="0" * 64,
        config=model.config,
        preprocess=preprocess or Preprocess(),
        class_names=tuple(class_names),
        superclasses=tuple(superclasses),
        scores=dict(scores or {}),
        certain_from=certain_from,
        versions=versions(),
        training=dict(training or {}),
    )
    manifest = draft.replace(digest=_digest(draft.model_dump(mode="json"), state))
    with files.replacing(path) as temporary:
        save_file(state, temporary, metadata={METADATA_KEY: manifest.to_json()})
    return manifest


def load_checkpoint(path: str | Path, **config_overrides: Any) -> Checkpoint:
    """The checkpoint in `path`, verified; `config_overrides` replace fields of its model config.

    Overrides that change what merges (`keep_rate=1`, `alpha=0`, `merge_layers=…`) need no new weights.
    Raises `CheckpointError` for a missing, truncated, foreign, altered or pickled file and `ConfigError`
    for a bad override.
    """
    path = Path(path)
    manifest, state = read(path)
    config = manifest.config.replace(**config_overrides) if config_overrides else manifest.config
    model = build(config)
    fill(model, state, path)
    return Checkpoint(manifest, model.eval().requires_grad_(False), path)


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a checkpoint, its digest verified; raises `CheckpointError`."""
    return read(Path(path))[0]


def read(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Manifest and weights as stored, verified, whatever model they are of; raises `CheckpointError`."""
    _refuse_other_files(path)
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise CheckpointError(
                    f"{path}: expected a FreqMerge checkpoint, found a safetensors file without its manifest; "
                    "plain timm weights go through `python -m training.train --pretrained FILE`"
                )
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, found one that is truncated or of another format "
            f"({error}); copy or download it again"
        ) from error
    return _verified(path, text, state), state


def fill(model: Configured, state: Mapping[str, Tensor], path: Path) -> None:
    """Puts float32 weights into the model; raises `CheckpointError` unless names and shapes are the model's."""
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{path}: expected the weights of {model.config.backbone} as configured; {len(differing)} tensors differ, "
            f"first {key}: expected {expected.get(key, 'no such tensor')}, found {found.get(key, 'no such tensor')}; "
            "use the config that the weights were trained with"
        )
    model.load_state_dict(
        {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    )


def versions() -> dict[str, str]:
    """Versions of what computes the numbers: Python, torch, timm and this package."""
    packages = {"torch": torch.__version__, "timm": version("timm")}
    return {"freqmerge": __version__, "python": platform.python_version(), **packages}


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    plain = tensor.detach().cpu().contiguous()
    return plain.to(dtype) if plain.is_floating_point() else plain


def _refuse_other_files(path: Path) -> None:
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise CheckpointError(f"{path}: expected a checkpoint file (.safetensors), found {found}; check the path")
    with path.open("rb") as opened:
        start = opened.read(9)
    if start[8:] != b"{" and (start.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in PICKLED):
        raise CheckpointError(
            f"{path}: expected a FreqMerge checkpoint (.safetensors), found a pickled file, which is never opened "
            "because it can run code; where you trust it, write its weights with safetensors.torch.save_file and "
            "start from them with `python -m training.train --pretrained FILE.safetensors`"
        )


def _verified(path: Path, text: str, state: dict[str, Tensor]) -> Manifest:
    try:
        raw_manifest = json.loads(text)
        found = raw_manifest.get("format")
        if found != FORMAT:
            raise CheckpointError(
                f"{path}: expected checkpoint format {FORMAT}, found {found!r}; use a matching version of freqmerge"
            )
        manifest = Manifest.from_json(text)
    except (ConfigError, json.JSONDecodeError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected a manifest, found a damaged one ({error}); fetch it again") from error
    # of what the file says: the record fills in fields that are younger than the file
    digest = _digest(raw_manifest, state)
    if digest != manifest.digest:
        raise CheckpointError(
            f"{path}: expected digest {manifest.digest[:12]}…, found {digest[:12]}…: weights or manifest were changed "
            "after saving; fetch the file again"
        )
    return manifest


def _digest(raw_manifest: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    facts = {key: value for key, value in raw_manifest.items() if key != "digest"}
    hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key in sorted(state):
        tensor = state[key]
        hasher.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
