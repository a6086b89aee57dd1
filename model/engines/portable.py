"""The portable artifact: a checkpoint as an int8 OpenVINO model that any CPU compiles at start. Needs no torch.

It lies beside its checkpoint, in three files: `NAME.int8.json`, which says everything about it, and the two of
OpenVINO's own format, `NAME.int8.xml` and `NAME.int8.bin`. The JSON holds the checkpoint's manifest, so that the
artifact alone can be served; answers of the float32 model, which the compiled engine is compared with at start; and
what the precision costs on the test images, which decides whether it is taken unasked.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from model import files
from model.config import Frozen, ModelConfig
from model.engines import agreement, artifact, openvino_engine
from model.engines.engine import EngineOutput, Precision
from model.engines.openvino_engine import OpenVINOEngine
from model.errors import ArtifactError, ConfigError, EngineError
from model.manifest import Manifest

log = logging.getLogger(__name__)

FORMAT = 1
MAX_LOSS = 0.002
"""Share of the test images by which a precision may be worse than float32 and still be taken unasked."""


class Accuracy(Frozen):
    """Top-1 on the test images, shares 0..1, paired with eager float32 on the same images."""

    images: int = Field(ge=1)
    top1: float = Field(ge=0, le=1)
    reference_top1: float = Field(ge=0, le=1)
    difference: float = Field(description="top-1 less that of float32")
    low: float = Field(description="lower end of the difference's 95 % interval")
    high: float = Field(description="upper end")


class Portable(Frozen):
    """What the JSON of a portable artifact says."""

    format: int = FORMAT
    checkpoint: Manifest = Field(description="the checkpoint's own manifest")
    config: ModelConfig = Field(description="the model config in force")
    precision: Precision = "int8"
    schedule: tuple[int, ...] = Field(description="tokens left after each block")
    grid: tuple[int, int] = Field(description="rows and columns of patches")
    parameters: int = Field(ge=1, description="parameters of the checkpoint's model")
    calibration: dict[str, Any] = Field(description="images that the ranges were calibrated on: how many, of what")
    reference: str = Field(description="answers of eager float32 to `agreement.pictures`: npz, base64")
    accuracy: dict[str, Accuracy] = Field(default_factory=dict, description="by precision, what it costs")
    versions: dict[str, str] = Field(description="versions that made it")
    graph_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the .xml")
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="digest of the .bin")

    @property
    def digest(self) -> str:
        """Digest of graph and weights together."""
        return hashlib.sha256((self.graph_sha256 + self.weights_sha256).encode()).hexdigest()

    def why_not_unasked(self, precision: Precision) -> str | None:
        """Why this precision is not taken unless it is asked for, or None."""
        accuracy = self.accuracy.get(precision)
        if accuracy is None:
            return f"what {precision} costs in accuracy was not measured"
        if accuracy.difference < -MAX_LOSS:
            return (
                f"{precision} costs {-100 * accuracy.difference:.2f} points of top-1 on {accuracy.images:,} images, "
                f"more than {100 * MAX_LOSS:g}"
            )
        return None


def path_beside(checkpoint: Path) -> Path:
    """Where the JSON of a checkpoint's portable artifact lies."""
    return checkpoint.with_suffix(".int8.json")


def find_artifact(checkpoint: Path, cache: Path | None) -> Path | None:
    """Where the JSON of a checkpoint's portable artifact lies: beside it, or in the cache; None if in neither."""
    beside = path_beside(checkpoint)
    places = (beside, *(() if cache is None else (cache / beside.name,)))
    return next((path for path in places if path.is_file()), None)


def write(path: Path, described: dict[str, Any], graph: bytes, weights: bytes) -> Portable:
    """Puts the three files at `path` (of the JSON), each in one step, the JSON last; returns what it says."""
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in (("graph", graph), ("weights", weights))}
    portable = Portable(**described, graph_sha256=digests["graph"], weights_sha256=digests["weights"])
    for part, suffix in ((graph, ".xml"), (weights, ".bin")):
        with files.replacing(path.with_suffix(suffix)) as temporary:
            temporary.write_bytes(part)
    files.write_text(path, portable.to_json() + "\n")
    return portable


def read(path: Path) -> Portable:
    """What the JSON at `path` says; raises `ArtifactError`."""
    try:
        portable = Portable.from_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: expected a portable artifact, found none that can be read ({error})") from error
    except (ConfigError, ValidationError) as error:
        raise ArtifactError(f"{path}: expected a portable artifact, found: {error}; export it again") from error
    if portable.format != FORMAT:
        raise ArtifactError(f"{path}: expected artifact format {FORMAT}, found {portable.format}; export it again")
    return portable


def graph_of(path: Path, portable: Portable) -> Any:
    """The `openvino.Model` of the artifact at `path`; raises `ArtifactError` where its files are not the JSON's."""
    parts = []
    for suffix, digest in ((".xml", portable.graph_sha256), (".bin", portable.weights_sha256)):
        part = path.with_suffix(suffix)
        try:
            content = part.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{part}: expected a part of {path.name}, found none that can be read") from error
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise ArtifactError(
                f"{part}: expected SHA-256 {digest[:12]}…, found {found[:12]}… in {len(content):,} bytes: cut short or "
                "changed; export it again"
            )
        parts.append(content)
    return openvino_engine.core().read_model(*parts)


def check_fits(path: Path, portable: Portable, manifest: Manifest, config: ModelConfig) -> None:
    """Raises `ArtifactError` unless the artifact is of this checkpoint and this config."""
    if portable.checkpoint.digest != manifest.digest:
        raise ArtifactError(
            f"{path}: a stale artifact: expected checkpoint {manifest.digest[:12]}…, found one of "
            f"{portable.checkpoint.digest[:12]}…; export it again"
        )
    if portable.config != config:
        found, expected = portable.config.model_dump(), config.model_dump()
        differing = [
            f"{name} expected {expected[name]}, found {found[name]}"
            for name in expected
            if expected[name] != found[name]
        ]
        raise ArtifactError(f"{path}: an artifact of another config: {'; '.join(differing)}")


def create(
    path: Path, portable: Portable, max_batch_size: int, folder: Path | None, threads: int, reason: str = ""
) -> OpenVINOEngine:
    """The engine of the artifact at `path`, compiled for this processor and kept in the folder.

    Raises `EngineError` where a file is damaged, OpenVINO refuses it, or its answers are not those of the reference.
    """
    if missing := openvino_engine.why_not("cpu", portable.precision):
        raise EngineError(f"openvino: {portable.precision} cannot be used: {missing}")
    origin = artifact.origin(
        "openvino",
        portable.checkpoint,
        portable.config,
        portable.precision,
        architecture=artifact.cpu(),
        graph=portable.digest,
    )

    def compiled(largest: int) -> bytes:
        graph = graph_of(path, portable)
        try:
            return openvino_engine.compiled(graph, portable.precision)
        except Exception as error:  # OpenVINO raises many types; callers need one
            raise EngineError(f"{path}: could not be compiled: {error}") from error

    native_size = portable.checkpoint.preprocess.native_size
    engine = openvino_engine.find_or_build(origin, compiled, native_size, max_batch_size, folder, threads, reason)
    agreement.check_answers(engine, unpacked(portable.reference), (1, max_batch_size), "eager float32")
    return engine


def packed(answers: EngineOutput) -> str:
    """Answers as text for `Portable.reference`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **answers._asdict())
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(text: str) -> EngineOutput:
    """The answers that `packed` wrote; raises `ArtifactError`."""
    try:
        with np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False) as parts:
            return EngineOutput(**{name: parts[name] for name in EngineOutput._fields})
    except (ValueError, OSError, KeyError) as error:
        raise ArtifactError(f"reference: expected answers of eager float32, found none ({error})") from error
