"""`python -m training.breakdown`: where the time of one batch goes in OpenVINO, and what of it merging takes.

OpenVINO times each node of the compiled graph; the nodes are summed by the part of the model that they belong to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt

from model.checkpoint import Checkpoint, load_checkpoint
from model.engines import openvino_engine, openvino_graph, portable
from model.engines.engine import Precision
from model.errors import EngineError
from model.manifest import default_checkpoint_path
from training import cli
from training.measure import graph_parts, records
from training.studies.breakdown import NAME, page


class BreakdownConfig(records.RecordConfig):
    """Which checkpoint is profiled, and how often."""

    ckpt: Path | None = Field(None, description="checkpoint to profile; none takes the one that ships")
    keep_rate: float | None = Field(
        None, gt=0, le=1, description="1 profiles the plain model; none takes the checkpoint's"
    )
    precisions: tuple[Precision, ...] = Field(
        (), description="fp32, bf16 or int8 (the artifact beside the checkpoint); none takes what the processor has"
    )
    batch_sizes: tuple[PositiveInt, ...] = Field((1, 8, 32), min_length=1, description="images per batch")
    repeats: int = Field(15, ge=3, description="profiled batches per batch size")
    warm_up: int = Field(2, ge=1, description="batches before them")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's choice")


def measure(config: BreakdownConfig) -> list[dict[str, Any]]:
    """One result per precision and batch size; raises `EngineError` and `ArtifactError`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    path = config.ckpt or default_checkpoint_path()
    changes = {} if config.keep_rate is None else {"keep_rate": config.keep_rate}
    checkpoint = load_checkpoint(path, **changes)
    parts = graph_parts.parts_of(checkpoint)
    manifest = checkpoint.manifest
    facts = {
        "checkpoint": manifest.name,
        "digest": manifest.digest,
        "keep_rate": checkpoint.model.config.keep_rate,
        "repeats": config.repeats,
    }
    results = []
    for precision in config.precisions or _possible(checkpoint):
        graph = _graph(checkpoint, precision)
        for size in config.batch_sizes:
            figures = _profile(config, graph, precision, parts, manifest.preprocess.native_size, size)
            results.append({**facts, "precision": precision, "batch_size": size, **figures})
    return results


def _possible(checkpoint: Checkpoint) -> list[Precision]:
    """What this processor has, and int8 where its artifact is of this checkpoint and config; says what is left out."""
    precisions: list[Precision] = []
    for precision in ("fp32", "bf16", "int8"):
        try:
            if missing := openvino_engine.why_not("cpu", precision):
                raise EngineError(missing)
            if precision == "int8":
                _fitting(checkpoint)
        except EngineError as error:
            print(f"{precision}: not run: {error}")
        else:
            precisions.append(precision)
    return precisions


def _fitting(checkpoint: Checkpoint) -> tuple[Path, portable.Portable]:
    """The artifact beside the checkpoint; raises `ArtifactError` where it is of another checkpoint or config."""
    path = portable.path_beside(checkpoint.path)
    artifact = portable.read(path)
    portable.check_fits(path, artifact, checkpoint.manifest, checkpoint.model.config)
    return path, artifact


def _graph(checkpoint: Checkpoint, precision: Precision) -> Any:
    """The checkpoint as an OpenVINO model that is not compiled yet."""
    if missing := openvino_engine.why_not("cpu", precision):
        raise EngineError(f"{precision}: {missing}")
    return portable.graph_of(*_fitting(checkpoint)) if precision == "int8" else openvino_graph.graph(checkpoint)


def _profile(
    config: BreakdownConfig, graph: Any, precision: Precision, parts: dict[str, str], side: int, size: int
) -> dict[str, Any]:
    """Milliseconds of a batch by part, and of the whole by the clock; how many nodes of each part take time."""
    threads = torch.get_num_threads()
    # compiled for each batch size: OpenVINO's times are means of all batches that a compiled model ever ran
    compiled = openvino_engine.profiled(graph, threads, precision)
    owners = graph_parts.owners(compiled, parts)
    request = compiled.create_infer_request()
    images = np.random.default_rng(0).integers(0, 256, (size, 3, side, side), np.uint8)
    images = images.astype(compiled.input(0).get_element_type().to_dtype())
    for _ in range(config.warm_up):
        request.infer([images])
    before = _sums(request, owners, config.warm_up)
    clock = []
    for _ in range(config.repeats):
        start = perf_counter()
        request.infer([images])
        clock.append(perf_counter() - start)
    after = _sums(request, owners, config.warm_up + config.repeats)
    count = Counter(owners[node.node_name] for node in request.profiling_info if node.real_time)
    return {
        "batch_ms": 1000 * fmean(clock),
        "nodes": {part: count[part] for part in graph_parts.PARTS},
        "parts_ms": {part: (after[part] - before[part]) / config.repeats for part in graph_parts.PARTS},
    }


def _sums(request: Any, owners: dict[str, str], batches: int) -> Counter[str]:
    """Milliseconds of all batches so far, by part; a profile holds their mean."""
    sums: Counter[str] = Counter()
    for node in request.profiling_info:
        if seconds := node.real_time.total_seconds():  # 0: fused into another one, and not in the compiled graph
            sums[owners[node.node_name]] += 1000 * seconds * batches
    return sums


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the profile."""
    parsed = cli.parser(
        "python -m training.breakdown", "Show where the time of one batch goes in OpenVINO.", BreakdownConfig
    ).parse_args(arguments)
    config = BreakdownConfig(**cli.given(BreakdownConfig, parsed))
    results = measure(config)
    folder = records.folder(config.output_dir, config.record)
    path = records.write_for_machine(
        NAME, cli.command("training.breakdown", arguments), results, torch.device("cpu"), folder
    )
    print(page(records.read(NAME, path.parent)))
    print(f"recorded: {path}")


if __name__ == "__main__":
    cli.run(main)
