"""Chooses and makes the engine for a machine.

`eager` runs the module as it is, `inductor` compiles it with torch.compile, `tensorrt` runs an engine that TensorRT
built, `openvino` one of OpenVINO's. `auto` takes the best the machine has and says why in `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch

from model import processor
from model.checkpoint import Checkpoint
from model.engines import agreement, openvino_engine, openvino_graph, portable, tensorrt_engine
from model.engines.classifier import classifier_of
from model.engines.device import exact_float32, hidden_cuda, pick_device
from model.engines.engine import KINDS, Engine, Precision, engine_errors
from model.engines.portable import Portable
from model.engines.torch_engine import TorchEngine
from model.errors import ArtifactError, EngineError

log = logging.getLogger(__name__)

UNASKED: tuple[Precision, ...] = ("int8", "bf16")
"""What OpenVINO is taken in without being asked for, fastest first, before float32."""


def create_engine(
    checkpoint: Checkpoint,
    kind: str = "auto",
    device: str = "auto",
    max_batch_size: int = 32,
    threads: int | None = None,
    precision: str = "auto",
    cache: Path | None = None,
) -> Engine:
    """An engine for the checkpoint; `kind` auto or one of `KINDS`, `device` auto, cpu, cuda or cuda:N.

    `threads` sets torch's CPU threads for the whole process, and OpenVINO takes as many; None is torch's own number,
    which knows no CPU limit of a container, or fewer where there is one. `precision` is auto, fp32,
    fp16, bf16 or int8. `cache` is where TensorRT's and OpenVINO's engines are kept; the first take minutes to build,
    the others seconds. On CUDA `auto` tries tensorrt, then inductor, then eager, all in fp16 unless told otherwise, and
    `tensorrt` falls back to inductor. On a CPU `auto` and `openvino` try openvino, then eager, and `tensorrt` is eager.
    OpenVINO takes the first of int8, bf16 and fp32 that the processor computes in and whose loss is measured and small
    (`portable.Portable.why_not_unasked`). One that cannot be made, cannot run or answers otherwise than eager gives way
    to the next, and `reason` tells. The engine changes the checkpoint's model, and switches TF32 off on CUDA. Raises
    `EngineError` for an unknown kind or precision, a device that is not there, or openvino on CUDA.
    """
    _check_names(kind, precision)
    torch.set_num_threads(threads or min(torch.get_num_threads(), processor.usable_cpus()))
    place = pick_device(device)
    hidden = hidden_cuda() if device == "auto" and place.type == "cpu" else ""
    if hidden:
        log.warning("no CUDA device can be used: %s", hidden)

    def why(reason: str) -> str:
        return "; ".join(filter(None, (reason, hidden and f"no CUDA device: {hidden}")))

    if place.type == "cpu":
        made = _OnCpu(checkpoint, max_batch_size, cache, why)
        return made.engine(kind, precision)
    if precision == "int8":
        raise EngineError("precision: expected fp32, fp16 or bf16 on CUDA, found 'int8'; take device cpu or auto")
    exact = _precision(precision, "fp16")

    def make(taken: str, reason: str) -> Engine:
        with engine_errors(f"{taken}: the engine could not be made on {place}"):
            if taken == "tensorrt":
                return tensorrt_engine.create(checkpoint, exact, place, max_batch_size, cache, why(reason))
            return TorchEngine(classifier_of(checkpoint, exact), taken, place, max_batch_size, why(reason))

    exact_float32()
    if kind == "openvino":
        raise EngineError(
            f"engine: openvino cannot be used: {openvino_engine.why_not(str(place))}; take device cpu or auto"
        )
    if kind in ("eager", "inductor"):
        return make(kind, "")
    return first_usable(
        ("tensorrt", "inductor") if kind == "tensorrt" else ("tensorrt", "inductor", "eager"),
        kind,
        make,
        lambda engine: _check(engine, checkpoint, exact, place),
    )


def first_usable(
    kinds: Sequence[str],
    wanted: str,
    make: Callable[[str, str], Engine],
    check: Callable[[Engine], None] = lambda engine: None,
) -> Engine:
    """The first of these kinds that can be made and warmed up and passes the check; the last is made without trying it.

    `make` takes a kind and the reason for it; `check` raises `EngineError` for an engine that answers wrong. Why a kind
    was passed over is logged, and stands in that reason.
    """
    failed: list[str] = []
    *tried, last = kinds
    for taken, following in zip(tried, kinds[1:], strict=True):
        try:
            with engine_errors(f"{taken}: the engine cannot be used"):
                engine = make(taken, _reason(taken, wanted, failed))
                engine.warm_up()
                check(engine)
        except EngineError as error:
            log.warning("%s; trying %s instead", error, following)
            failed.append(str(error))
        else:
            return engine
    return make(last, _reason(last, wanted, failed))


class _OnCpu:
    """Makes engines of one checkpoint on a CPU."""

    def __init__(
        self, checkpoint: Checkpoint, max_batch_size: int, cache: Path | None, why: Callable[[str], str]
    ) -> None:
        self._checkpoint = checkpoint
        self._max_batch_size = max_batch_size
        self._cache = cache
        self._why = why
        self._place = torch.device("cpu")

    def engine(self, kind: str, precision: str) -> Engine:
        """The engine that runs where this kind and this precision are asked for, each by name or auto."""
        if kind == "inductor":
            log.info("inductor compiles the model for the CPU, which takes minutes; the engine eager starts at once")
        if kind in ("eager", "inductor"):
            if precision == "int8":
                raise EngineError(f"precision: expected fp32, fp16 or bf16 with {kind}, found 'int8'; take openvino")
            return self._torch(kind, _precision(precision, "fp32"), "")
        # int8 exists in OpenVINO only: whoever takes its place computes in float32
        exact = _precision("fp32" if precision == "int8" else precision, "fp32")
        if kind == "tensorrt":
            reason = f"tensorrt cannot be used: {tensorrt_engine.why_not(self._place)}"
        elif missing := openvino_engine.why_not("cpu", exact):
            reason = f"openvino cannot be used: {missing}"
        else:
            return self._openvino(kind, precision, exact)
        if kind != "auto":
            log.warning("%s; eager takes its place", reason)
        return self._torch("eager", exact, self._why(f"eager: {reason}"))

    def _openvino(self, kind: str, precision: str, exact: Precision) -> Engine:
        """The first of OpenVINO's precisions that may be taken and answers rightly, else eager."""
        makers: dict[str, Callable[[str], Engine]] = {}
        passed_over: list[str] = []
        path, shipped = self._portable(passed_over) if precision in ("auto", "int8") else (Path(), None)
        for unasked in UNASKED if precision == "auto" else ():
            if reason := self._why_not_unasked(unasked, shipped):
                passed_over += [reason] if shipped else []
            else:
                makers[f"openvino {unasked}"] = self._maker(unasked, path, shipped)
        if precision == "int8" and shipped:
            makers["openvino int8"] = self._maker("int8", path, shipped)
        makers["openvino"] = self._maker(exact, path, None)
        makers["eager"] = lambda reason: self._torch("eager", exact, reason)

        def make(taken: str, reason: str) -> Engine:
            with engine_errors(f"{taken}: the engine could not be made on cpu"):
                return makers[taken](self._why("; ".join(filter(None, (reason, *passed_over)))))

        def check(engine: Engine) -> None:
            if engine.precision != "int8":  # that one was compared with what its artifact says
                _check(engine, self._checkpoint, "fp32", self._place)

        return first_usable(tuple(makers), kind, make, check)

    def _maker(self, precision: Precision, path: Path, shipped: Portable | None) -> Callable[[str], Engine]:
        def make(reason: str) -> Engine:
            threads = torch.get_num_threads()
            if shipped is not None and precision == shipped.precision:
                return portable.create(path, shipped, self._max_batch_size, self._cache, threads, reason)
            return openvino_graph.create(
                self._checkpoint, precision, self._max_batch_size, self._cache, threads, reason
            )

        return make

    def _torch(self, kind: str, precision: Precision, reason: str) -> Engine:
        with engine_errors(f"{kind}: the engine could not be made on cpu"):
            return TorchEngine(
                classifier_of(self._checkpoint, precision), kind, self._place, self._max_batch_size, reason
            )

    def _portable(self, passed_over: list[str]) -> tuple[Path, Portable | None]:
        """The checkpoint's portable artifact and its place, if there is one that fits; why not is noted and logged."""
        checkpoint = self._checkpoint
        path = portable.find_artifact(checkpoint.path, self._cache)
        if path is None:
            return Path(), None
        try:
            shipped = portable.read(path)
            portable.check_fits(path, shipped, checkpoint.manifest, checkpoint.model.config)
        except ArtifactError as error:
            log.warning("%s", error)
            passed_over.append(str(error))
            return path, None
        return path, shipped

    def _why_not_unasked(self, precision: Precision, shipped: Portable | None) -> str | None:
        if missing := openvino_engine.why_not("cpu", precision):
            return missing
        if precision == "int8" and not processor.fast_int8():
            return "int8 would be no faster: this processor has no instructions for 8-bit products (such as VNNI)"
        if shipped is None:
            return f"what {precision} costs in accuracy was not measured"
        return shipped.why_not_unasked(precision)


def _check(engine: Engine, checkpoint: Checkpoint, precision: Precision, place: torch.device) -> None:
    """Raises `EngineError` unless the engine answers as eager does in this precision."""
    most = engine.max_batch_size
    reference = TorchEngine(classifier_of(checkpoint, precision), "eager", place, min(agreement.PICTURES, most))
    agreement.check(engine, reference, _checked_sizes(most))


def _reason(taken: str, wanted: str, failed: list[str]) -> str:
    if failed:
        return f"{taken}: {'; '.join(failed)}"
    return "" if taken == wanted else f"{taken}: the best that this device and these packages have"


def _check_names(kind: str, precision: str) -> None:
    if kind != "auto" and kind not in KINDS:
        raise EngineError(f"engine: expected one of auto, {', '.join(KINDS)}, found {kind!r}")
    if precision != "auto" and precision not in get_args(Precision):
        raise EngineError(f"precision: expected one of auto, {', '.join(get_args(Precision))}, found {precision!r}")


def _checked_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The smallest and the largest batch, and the largest of TensorRT's profile between them."""
    return tuple(sorted({1, min(8, max_batch_size), max_batch_size}))


def _precision(name: str, default: Precision) -> Precision:
    exact: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
    return exact.get(name, default)
