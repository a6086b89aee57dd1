"""The manifest of a checkpoint: everything about it but its weights. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open

from model.config import Frozen, ModelConfig
from model.errors import CheckpointError, ConfigError
from model.images.preprocess import Preprocess

FORMAT = 1
METADATA_KEY = "freqmerge"
WEIGHTS = Path(__file__).parent / "weights"


class Manifest(Frozen):
    """Everything about a checkpoint but its weights."""

    format: int = Field(FORMAT, ge=1, description="version of the checkpoint format")
    name: str = Field(min_length=1, description="name of the model")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the weights and of this manifest")
    config: ModelConfig
    preprocess: Preprocess
    class_names: tuple[str, ...] = Field(description="name of each class id")
    superclasses: tuple[str, ...] = Field(description="superclass of each class id; empty if there are none")
    scores: dict[str, float] = Field(description="test scores, shares 0..1, such as top1 and top5")
    certain_from: float | None = Field(
        None,
        ge=0,
        le=1,
        description="probability of the best class from which an answer counts as certain; none: nothing is said of it",
    )
    versions: dict[str, str] = Field(description="versions that wrote the file")
    training: dict[str, Any] = Field(description="how the weights came about: command, data, epochs")


def read_header(path: Path) -> Manifest:
    """The manifest in a checkpoint's header, its weights unread and its digest unverified; raises `CheckpointError`."""
    try:
        with safe_open(path, framework="numpy") as opened:
            text = (opened.metadata() or {}).get(METADATA_KEY, "")
        return Manifest.from_json(text)
    except (OSError, SafetensorError, ConfigError, ValidationError) as error:
        raise CheckpointError(
            f"{path}: expected a FreqMerge checkpoint, found a file without its manifest ({error}); train or "
            "download it again"
        ) from error


def default_checkpoint_path() -> Path:
    """The checkpoint that ships with the package; raises `CheckpointError` if there is not exactly one."""
    shipped = sorted(WEIGHTS.glob("*.safetensors"))
    if len(shipped) != 1:
        raise CheckpointError(
            f"expected one *.safetensors file in {WEIGHTS}, found {len(shipped)}; name a checkpoint explicitly"
        )
    return shipped[0]
