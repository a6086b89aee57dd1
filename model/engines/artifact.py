"""Compiled engines on disk: plain bytes, and beside them a JSON manifest of what they were made of and for.

An engine fits one checkpoint, config, precision, code, kind of GPU or CPU and set of library versions; its file is
named by a digest over these. A file that says anything else, or whose bytes are not those of its manifest, is refused,
and one that its own library refuses is deleted. A build that failed leaves a note under the same name, so that a
service that is started again and again does not build for minutes each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from model import files, processor
from model._version import __version__
from model.config import Frozen, ModelConfig
from model.engines.engine import Precision
from model.errors import ArtifactError, ConfigError, EngineError
from model.manifest import Manifest

if TYPE_CHECKING:
    import torch

    from model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

FORMAT = 3
"""Version of what an engine takes and gives: 3 gives two frequency scores where 2 gave one."""
Kind = Literal["tensorrt", "openvino"]
PACKAGES: dict[Kind, tuple[str, ...]] = {
    # torch-tensorrt brings the three in the middle; the last is what NVIDIA's own containers have
    "tensorrt": (
        "torch",
        "torch-tensorrt",
        "tensorrt-cu13",
        "tensorrt-cu13-bindings",
        "tensorrt-cu13-libs",
        "tensorrt",
    ),
    "openvino": ("torch", "openvino"),
}
"""Distributions whose version is a reason to build again."""

ATTEMPTS = 2
"""Builds that may begin and not end, as when the process is killed, before the next start does without."""

Loaded = TypeVar("Loaded")


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
    graph: str = Field("", description="SHA-256 of the portable artifact that it was compiled from; empty without one")

    @property
    def key(self) -> str:
        """Digest of all that."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def path(self, folder: Path) -> Path:
        """Where the engine lies in a folder; its manifest has the suffix `.json`."""
        return folder / f"{self.checkpoint}-{self.precision}-{self.key[:16]}.engine"


class Profile(Frozen):
    """A range of batch sizes that an engine takes, and the one that it is tuned for."""

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
    profiles: tuple[Profile, ...] = Field(min_length=1, description="ranges of batch sizes, without gaps from 1 on")
    bytes: int = Field(ge=1, description="size of the engine")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the engine's bytes")


def origin_of(checkpoint: Checkpoint, precision: Precision, device: torch.device, engine: Kind = "tensorrt") -> Origin:
    """What an engine of this checkpoint would be made of and for, here."""
    gpu, architecture = ("none", cpu()) if device.type != "cuda" else _gpu(device)
    return origin(engine, checkpoint.manifest, checkpoint.model.config, precision, architecture=architecture, gpu=gpu)


def origin(
    engine: Kind,
    manifest: Manifest,
    config: ModelConfig,
    precision: Precision,
    *,
    architecture: str,
    gpu: str = "none",
    graph: str = "",
) -> Origin:
    """What an engine is made of and for, from the manifest of a checkpoint and the config in force."""
    return Origin(
        engine=engine,
        checkpoint=manifest.name,
        digest=manifest.digest,
        config_digest=hashlib.sha256((config.to_json() + manifest.preprocess.to_json()).encode()).hexdigest(),
        code_digest=_code_digest(),
        precision=precision,
        gpu=gpu,
        architecture=architecture,
        versions={"freqmerge": __version__, **{name: _version(name) for name in PACKAGES[engine]}},
        graph=graph,
    )


def cpu() -> str:
    """This processor, with what decides which instructions an engine for it uses."""
    return f"{processor.cpu_name()}, {' '.join(processor.cpu_features()) or 'no known vector instructions'}"


class Failure(Frozen):
    """The note beside the place of an engine that could not be built."""

    reason: str
    attempts: int = Field(ge=1, description="builds that have begun")
    final: bool = Field(description="whether the last one ended with an error, rather than with its process")


def find_engine(
    origin: Origin, max_batch_size: int, folder: Path | None, load: Callable[[bytes], Loaded]
) -> Loaded | None:
    """What `load` makes of the engine of this origin that lies in the folder; None if there is none that can be used.

    One that is stale, damaged or refused by `load` with an `EngineError` is deleted, and the log says why.
    """
    path = None if folder is None else origin.path(folder)
    if path is None or not path.exists():
        return None
    try:
        return load(read(path, origin, max_batch_size))
    except EngineError as error:
        log.warning("%s", error)
    with suppress(OSError):
        discard(path)
    return None


def build_engine(
    origin: Origin,
    profiles: tuple[Profile, ...],
    folder: Path | None,
    build: Callable[[], bytes],
    load: Callable[[bytes], Loaded],
    *,
    remember: bool = False,
) -> Loaded:
    """What `load` makes of what `build` gives, which is then kept in the folder; raises `EngineError`.

    With `remember`, a build that failed is not begun again until its note in the folder is deleted, nor is one that
    was cut short `ATTEMPTS` times. A folder that cannot be written costs the next start a build.
    """
    with _noted(origin.path(folder) if folder is not None and remember else None):
        engine = build()
        result = load(engine)
    if folder is not None:
        try:
            log.info("engine kept as %s", write(folder, origin, profiles, engine))
        except OSError as error:
            log.warning("the engine is not kept for the next start: %s", error)
    return result


def failure_path(path: Path) -> Path:
    """Where the note of a failed build of the engine at `path` lies."""
    return path.with_suffix(".failed.json")


def discard(path: Path) -> None:
    """Deletes an engine and its manifest, if they are there."""
    for part in (path, path.with_suffix(".json")):
        part.unlink(missing_ok=True)


@contextmanager
def _noted(path: Path | None) -> Iterator[None]:
    """A build, its failure noted beside the engine's place; raises `EngineError` at once where earlier ones failed."""
    if path is None:
        yield
        return
    note = failure_path(path)
    earlier = _failure(note)
    if earlier is not None and (earlier.final or earlier.attempts >= ATTEMPTS):
        raise EngineError(f"an earlier build failed ({earlier.reason}); delete {note} to build again")
    attempts = 1 if earlier is None else earlier.attempts + 1
    _keep(note, Failure(reason="its process ended before the build did", attempts=attempts, final=False))
    try:
        yield
    except EngineError as error:
        _keep(note, Failure(reason=str(error), attempts=attempts, final=True))
        raise
    with suppress(OSError):
        note.unlink(missing_ok=True)


def _failure(note: Path) -> Failure | None:
    try:
        return Failure.from_json(note.read_bytes())
    except (OSError, ConfigError, ValidationError):  # none, or none that can be read: build
        return None


def _keep(note: Path, failure: Failure) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(note, failure.to_json() + "\n")
    except OSError as error:
        log.warning("the next start will not know of this build: %s", error)


def write(folder: Path, origin: Origin, profiles: tuple[Profile, ...], engine: bytes) -> Path:
    """Puts engine and manifest into the folder, each in one step, the manifest last; returns the engine's path."""
    path = origin.path(folder)
    digest = hashlib.sha256(engine).hexdigest()
    artifact = Artifact(origin=origin, profiles=profiles, bytes=len(engine), sha256=digest)
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
    smallest, largest = artifact.profiles[0].smallest, artifact.profiles[-1].largest
    if not smallest <= 1 <= max_batch_size <= largest:
        raise ArtifactError(
            f"{path}: expected an engine for 1..{max_batch_size} images, found {smallest}..{largest}; build it again"
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
        artifact = Artifact.from_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: expected the manifest of an engine, found none that can be read") from error
    except (ConfigError, ValidationError) as error:
        raise ArtifactError(f"{path}: expected the manifest of an engine, found: {error}; build it again") from error
    if artifact.format != FORMAT:
        raise ArtifactError(f"{path}: expected engine format {FORMAT}, found {artifact.format}; build it again")
    return artifact


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


def _gpu(device: torch.device) -> tuple[str, str]:
    """Name and compute capability of a GPU."""
    import torch

    return torch.cuda.get_device_name(device), "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
