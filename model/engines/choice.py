"""Chooses and makes the engine for a machine.

`eager` runs the module as it is, `inductor` compiles it with torch.compile, `tensorrt` runs an engine that TensorRT
built, `openvino` one of OpenVINO's. `auto` takes the best the machine has and says why in `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from model.checkpoint import Checkpoint
from model.engines import agreement, openvino_engine, tensorrt_engine
from model.engines.classifier import DTYPES, classifier_of
from model.engines.device import exact_float32, hidden_cuda, pick_device
from model.engines.engine import KINDS, Engine, Precision, engine_errors
from model.engines.torch_engine import TorchEngine
from model.errors import EngineError

log = logging.getLogger(__name__)


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

    `threads` sets torch's CPU threads for the whole process, and OpenVINO takes as many. `precision` is auto, fp32,
    fp16 or bf16; auto is fp16 on CUDA and fp32 on a CPU. `cache` is where TensorRT's and OpenVINO's engines are kept;
    the first take minutes to build, the others seconds. On CUDA `auto` tries tensorrt, then inductor, then eager, and
    `tensorrt` falls back to inductor. On a CPU `auto` and `openvino` try openvino, then eager, and `tensorrt` is eager.
    One that cannot be made, cannot run or answers otherwise than eager gives way to the next, and `reason` tells. The
    engine changes the checkpoint's model, and switches TF32 off on CUDA. Raises `EngineError` for an unknown kind or
    precision, a device that is not there, or openvino on CUDA.
    """
    _check_names(kind, precision)
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(device)
    exact = _precision(precision, place)
    hidden = hidden_cuda() if device == "auto" and place.type == "cpu" else ""
    if hidden:
        log.warning("no CUDA device can be used: %s", hidden)

    def make(taken: str, reason: str) -> Engine:
        why = "; ".join(filter(None, (reason, hidden and f"no CUDA device: {hidden}")))
        with engine_errors(f"{taken}: the engine could not be made on {place}"):
            if taken == "tensorrt":
                return tensorrt_engine.create(checkpoint, exact, place, max_batch_size, cache, why)
            if taken == "openvino":
                return openvino_engine.create(checkpoint, max_batch_size, cache, torch.get_num_threads(), why)
            return TorchEngine(classifier_of(checkpoint, exact), taken, place, max_batch_size, why)

    def check(engine: Engine) -> None:
        few = min(agreement.PICTURES, max_batch_size)
        reference = TorchEngine(classifier_of(checkpoint, exact), "eager", place, few)
        agreement.check(engine, reference, _checked_sizes(max_batch_size))

    if place.type == "cpu":
        return _on_cpu(kind, place, exact, make, check)
    exact_float32()
    if kind == "openvino":
        raise EngineError(f"engine: openvino cannot be used: {openvino_engine.why_not(place)}; take device cpu or auto")
    if kind in ("eager", "inductor"):
        return make(kind, "")
    return first_usable(
        ("tensorrt", "inductor") if kind == "tensorrt" else ("tensorrt", "inductor", "eager"), kind, make, check
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


def _on_cpu(
    kind: str,
    place: torch.device,
    precision: Precision,
    make: Callable[[str, str], Engine],
    check: Callable[[Engine], None],
) -> Engine:
    """The engine that runs on a CPU where this kind is asked for."""
    if kind == "inductor":
        log.info("inductor compiles the model for the CPU, which takes minutes; the engine eager starts at once")
    if kind in ("eager", "inductor"):
        return make(kind, "")
    if kind == "tensorrt":
        reason = f"tensorrt cannot be used: {tensorrt_engine.why_not(place)}"
    elif missing := openvino_engine.why_not(place, precision):
        reason = f"openvino cannot be used: {missing}"
    else:
        return first_usable(("openvino", "eager"), kind, make, check)
    if kind != "auto":
        log.warning("%s; eager takes its place", reason)
    return make("eager", f"eager: {reason}")


def _reason(taken: str, wanted: str, failed: list[str]) -> str:
    if failed:
        return f"{taken}: {'; '.join(failed)}"
    return "" if taken == wanted else f"{taken}: the best that this device and these packages have"


def _check_names(kind: str, precision: str) -> None:
    if kind != "auto" and kind not in KINDS:
        raise EngineError(f"engine: expected one of auto, {', '.join(KINDS)}, found {kind!r}")
    if precision != "auto" and precision not in DTYPES:
        raise EngineError(f"precision: expected one of auto, {', '.join(DTYPES)}, found {precision!r}")


def _checked_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The smallest and the largest batch, and the largest of TensorRT's profile between them."""
    return tuple(sorted({1, min(8, max_batch_size), max_batch_size}))


def _precision(name: str, device: torch.device) -> Precision:
    exact: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
    return exact.get(name, "fp16" if device.type == "cuda" else "fp32")
