"""Compiled engines on disk: plain bytes, and beside them a JSON manifest of what they were made of and for.

An engine fits one checkpoint, config, precision, code, kind of GPU or CPU and set of library versions; its file is
named by a digest over these. A file that says anything else, or whose bytes are not those of its manifest, is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator

from model import files, provenance
from model._version import __version__
from model.checkpoint import Checkpoint
from model.config import Frozen
from model.engines.engine import Precision
from model.errors import ArtifactError, ConfigError

log = logging.getLogger(__name__)

FORMAT = 1
Kind = Literal["tensorrt", "openvino"]
PACKAGES: dict[Kind, tuple[str, ...]] = {
    "tensorrt": ("torch", "torch-tensorrt", "tensorrt"),
    "openvino": ("torch", "openvino"),
}


class Origin(Frozen):
    """What an engine is made of and for; two that are equal may share a file."""

    engine: Kind = "tensorrt"
    checkpoint: str = Field(description="name of the checkpoint")
    digest: str = Field(description="SHA-256 of the checkpoint's weights and manifest")
    config_digest: str = Field(description="SHA-256 of the model config in force and of the preprocessing")
    code_digest: str = Field(description="SHA-256 of this package's source")
    precision: Precision
    gpu: str = Field(description="name of the GPU that the engine was built on; none if it is for a CPU")
    architecture: str = Field(description="compute capability of that GPU, such as sm_90, or the CPU")
    versions: dict[str, str] = Field(description="versions that built the engine")

    @property
    def key(self) -> str:
        """Digest of all that."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def path(self, folder: Path) -> Path:
        """Where the engine lies in a folder; its manifest has the suffix `.json`."""
        return folder / f"{self.checkpoint}-{self.precision}-{self.key[:16]}.engine"


class Profile(Frozen):
    """Batch sizes that an engine takes, and the one that it is tuned for."""

    smallest: int = Field(1, ge=1)
    best: int = Field(64, ge=1)
    largest: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Profile:
        if not self.smallest <= self.best <= self.largest:
            raise ValueError(
                f"expected smallest <= best <= largest, found {self.smallest}, {self.best}, {self.largest}"
            )
        return self


class Artifact(Frozen):
    """The manifest beside an engine's bytes."""

    format: int = FORMAT
    origin: Origin
    profile: Profile
    bytes: int = Field(ge=1, description="size of the engine")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the engine's bytes")


def origin_of(checkpoint: Checkpoint, precision: Precision, device: torch.device, engine: Kind = "tensorrt") -> Origin:
    """What an engine of this checkpoint would be made of and for, here."""
    manifest, config = checkpoint.manifest, checkpoint.model.config
    cuda = device.type == "cuda"
    return Origin(
        engine=engine,
        checkpoint=manifest.name,
        digest=manifest.digest,
        config_digest=hashlib.sha256((config.to_json() + manifest.preprocess.to_json()).encode()).hexdigest(),
        code_digest=_code_digest(),
        precision=precision,
        gpu=torch.cuda.get_device_name(device) if cuda else "none",
        architecture=_architecture(device),
        versions={"freqmerge": __version__, **{name: _version(name) for name in PACKAGES[engine]}},
    )


def cached(
    origin: Origin, profile: Profile, max_batch_size: int, folder: Path | None, build: Callable[[], bytes]
) -> bytes:
    """The engine of this origin that lies in the folder, or what `build` gives, then kept there.

    A stale or damaged file is built again; a folder that cannot be written costs the next start a build.
    """
    if folder is not None and origin.path(folder).exists():
        try:
            return read(origin.path(folder), origin, max_batch_size)
        except ArtifactError as error:
            log.warning("%s", error)
    engine = build()
    if folder is not None:
        try:
            log.info("engine kept as %s", write(folder, origin, profile, engine))
        except OSError as error:
            log.warning("the engine is not kept for the next start: %s", error)
    return engine


def write(folder: Path, origin: Origin, profile: Profile, engine: bytes) -> Path:
    """Puts engine and manifest into the folder, each in one step, the manifest last; returns the engine's path."""
    path = origin.path(folder)
    artifact = Artifact(origin=origin, profile=profile, bytes=len(engine), sha256=hashlib.sha256(engine).hexdigest())
    with files.replacing(path) as temporary:
        temporary.write_bytes(engine)
    files.write_text(path.with_suffix(".json"), json.dumps(artifact.model_dump(mode="json"), indent=1) + "\n")
    return path


def read(path: Path, origin: Origin, max_batch_size: int) -> bytes:
    """The engine in `path`; raises `ArtifactError` unless it is whole, of this origin, and takes the batch."""
    artifact = _manifest(path.with_suffix(".json"))
    differing = _differences(artifact.origin, origin)
    if differing:
        raise ArtifactError(f"{path}: a stale or foreign engine: {'; '.join(differing)}; build it again")
    if not artifact.profile.smallest <= 1 <= max_batch_size <= artifact.profile.largest:
        raise ArtifactError(
            f"{path}: expected an engine for 1..{max_batch_size} images, found "
            f"{artifact.profile.smallest}..{artifact.profile.largest}; build it again"
        )
    try:
        engine = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: expected an engine, found none that can be read ({error})") from error
    found = hashlib.sha256(engine).hexdigest()
    if found != artifact.sha256:
        raise ArtifactError(
            f"{path}: expected {artifact.bytes} bytes of SHA-256 {artifact.sha256[:12]}…, found {len(engine)} of "
            f"{found[:12]}…: cut short or changed; build it again"
        )
    return engine


def _manifest(path: Path) -> Artifact:
    try:
        return Artifact.from_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: expected the manifest of an engine, found none that can be read") from error
    except (ConfigError, ValidationError) as error:
        raise ArtifactError(f"{path}: expected the manifest of an engine, found: {error}; build it again") from error


def _differences(found: Origin, wanted: Origin) -> list[str]:
    have, want = found.model_dump(), wanted.model_dump()
    have |= {f"version of {name}": value for name, value in have.pop("versions").items()}
    want |= {f"version of {name}": value for name, value in want.pop("versions").items()}
    return [
        f"{name} expected {want.get(name, 'nothing')}, found {have.get(name, 'nothing')}"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """A change of the code is a change of the graph, whatever the version says."""
    folder = Path(__file__).parents[1]
    hasher = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        hasher.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return hasher.hexdigest()


def _architecture(device: torch.device) -> str:
    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return f"{provenance.cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
