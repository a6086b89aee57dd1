"""Trained weights to start from: timm's from the hub, or those in a local safetensors file.

The head is left freshly initialised where the number of classes differs, and the position embedding is resampled where
the grid differs; everything else has to fit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import eva, vision_transformer
from torch import Tensor

from model import FreqMergeViT, ModelConfig, build
from model.checkpoint import read_manifest
from model.manifest import METADATA_KEY
from training.errors import WeightsError

HUB = "hub"
ORIGIN_KEY = "freqmerge.origin"
"""Where plain timm weights say what they were made from: JSON in the metadata of their safetensors file."""
HEAD = ("head.weight", "head.bias")


def start_from(source: str, config: ModelConfig, *, drop_path: float, patch_drop: float) -> FreqMergeViT:
    """A model with the weights of `source`, 'hub' or a file; raises `WeightsError`."""
    if source != HUB:
        return filled(build(config, drop_path=drop_path, patch_drop=patch_drop), Path(source))
    try:
        return build(config, pretrained=True, drop_path=drop_path, patch_drop=patch_drop)
    except (RuntimeError, OSError) as error:  # what timm and the hub's client raise
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"pretrained: no weights of {config.backbone} from the hub ({reason}); check the name, backbone_args and "
            "the network, or name a safetensors file: --pretrained FILE"
        ) from error


def filled(model: FreqMergeViT, path: Path) -> FreqMergeViT:
    """The model with the weights in the file, timm's or a FreqMerge checkpoint's; raises `WeightsError`."""
    timms = eva if isinstance(model.vit, eva.Eva) else vision_transformer
    state = timms.checkpoint_filter_fn(_read(path), model.vit)
    expected = {key: tuple(tensor.shape) for key, tensor in model.vit.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if any(found.get(key) != expected.get(key) for key in HEAD):  # another number of classes, or no head at all
        state = {key: tensor for key, tensor in state.items() if key not in HEAD}
        expected, found = ({k: v for k, v in shapes.items() if k not in HEAD} for shapes in (expected, found))
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise WeightsError(
            f"pretrained: expected weights of {model.config.backbone} in {path}; {len(differing)} tensors differ, "
            f"first {key}: expected {expected.get(key, 'no such tensor')}, found {found.get(key, 'no such tensor')}; "
            "name the --backbone (and --backbone_args) that the weights belong to"
        )
    model.vit.load_state_dict(state, strict=False)
    return model


def origin(source: str, backbone: str) -> dict[str, Any]:
    """Where the weights of `source` come from, as far back as the files themselves tell: JSON for `started_from`.

    A checkpoint of ours and a file of `training.convert` know what they were started from. Raises `WeightsError` and
    `CheckpointError` for a file whose record is damaged.
    """
    if source == HUB:
        return {"hub": backbone}
    path = Path(source)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata() or {}
    named = {"file": path.name, "sha256": sha256(path)}
    if METADATA_KEY in metadata:
        manifest = read_manifest(path)
        return {**named, "name": manifest.name, "digest": manifest.digest, "training": manifest.training}
    if ORIGIN_KEY not in metadata:
        return named
    try:
        return {**named, **json.loads(metadata[ORIGIN_KEY])}
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"pretrained: expected a record of where the weights come from in {path}, found a damaged one ({error}); "
            "make the file again with `python -m training.convert`"
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"pretrained: expected 'hub' or a safetensors file, found nothing at {path}")
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            f"pretrained: expected a whole safetensors file at {path}, found another format or a truncated file "
            f"({error}); pickled weights are never opened: where you trust them, write them again with "
            "safetensors.torch.save_file"
        ) from error
    return {key.removeprefix("vit."): tensor.float() for key, tensor in state.items()}
