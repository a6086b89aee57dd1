"""From the bytes of an inference request to files or pixels. Blocking: belongs on a worker thread."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from service.api.oip import elements
from service.api.oip.metadata import IMAGE, PIXELS, Tensor
from service.api.oip.schemas import (
    IndexRequest,
    InferenceRequest,
    InputParameters,
    Open,
    OutputParameters,
    RequestInput,
    RequestOutput,
    RequestParameters,
)
from service.errors import BadInference
from service.http.faults import MAX_FAULTS, fault_of

MAX_BRACKETS = 100_000
"""Lists and objects of a JSON part: each costs some hundred bytes of memory for the one or two that were sent."""


Shape = TypeVar("Shape", bound=Open)


class Contract(NamedTuple):
    """What a request may hold and ask for."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_images: int
    max_json_bytes: int


class Wanted(NamedTuple):
    """An output that is asked for; the `classes` highest values instead of the tensor, if that is not 0."""

    tensor: Tensor
    binary: bool
    classes: int


class Inference(NamedTuple):
    """A valid request: either files or pixels uint8 [count, 3, side, side]."""

    id: str | None
    files: list[bytes]
    pixels: NDArray[np.uint8] | None
    wanted: list[Wanted]


def parse(body: bytes, header_length: str | None, contract: Contract) -> Inference:
    """The request; raises `BadInference`.

    `header_length` is the header Inference-Header-Content-Length: the bytes of JSON before the binary tensors.
    """
    json_part, binary = _split(body, header_length)
    request = _validated(json_part, contract.max_json_bytes)
    wanted = _wanted(request, contract.outputs)
    given = _only(request.inputs)
    raw = _raw(given, binary)
    tensor = _tensor(given, contract.inputs)
    count = _count(given, tensor, contract.max_images)
    if tensor.name == IMAGE:
        return Inference(request.id, _files(given, raw, count), None, wanted)
    return Inference(request.id, [], _levels(given, raw, (count, *tensor.shape[1:])), wanted)


def asks_for_ready(body: bytes) -> bool:
    """Whether a request for the repository index wants models that answer only; raises `BadInference`."""
    return bool(body and _read(IndexRequest, body).ready)


def _files(given: RequestInput, raw: memoryview | None, count: int) -> list[bytes]:
    return elements.json_texts(given.data, IMAGE, count) if raw is None else elements.binary_texts(raw, IMAGE, count)


def _levels(given: RequestInput, raw: memoryview | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if raw is None:
        return elements.json_levels(given.data, PIXELS, shape)
    return elements.binary_levels(raw, PIXELS, shape)


def _split(body: bytes, header_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON part and the binary part."""
    whole = memoryview(body)
    if header_length is None:
        return whole, whole[len(whole) :]
    text = header_length.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and int(text) <= len(whole)):
        raise BadInference(
            f"Inference-Header-Content-Length: expected the bytes of the JSON part, at most {len(whole)}, "
            f"found {text[:40]!r}"
        )
    return whole[: int(text)], whole[int(text) :]


def _validated(json_part: memoryview, max_bytes: int) -> InferenceRequest:
    if len(json_part) > max_bytes:
        raise BadInference(
            f"expected at most {max_bytes:,} bytes of JSON, found {len(json_part):,}; "
            "send the tensor with the binary tensor data extension"
        )
    text = bytes(json_part)
    if text.count(b"[") + text.count(b"{") > MAX_BRACKETS:
        raise BadInference(f"expected at most {MAX_BRACKETS:,} lists and objects, found more; send flat tensor data")
    return _read(InferenceRequest, text)


def _read(model: type[Shape], text: bytes) -> Shape:
    """The text as what the model describes; raises `BadInference`."""
    try:
        return model.model_validate(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise BadInference(f"expected a JSON object, found text that does not parse: {error}") from None
    except ValidationError as error:
        raise BadInference("; ".join(str(fault_of(item, skip=0)) for item in error.errors()[:MAX_FAULTS])) from None


def _only(inputs: list[RequestInput]) -> RequestInput:
    if len(inputs) == 1:
        return inputs[0]
    names = ", ".join(repr(given.name[:40]) for given in inputs)
    raise BadInference(f"inputs: expected exactly one, {IMAGE} or {PIXELS}, found {len(inputs)}: {names}")


def _raw(given: RequestInput, binary: memoryview) -> memoryview | None:
    """The binary part if the input lies there, None if it lies in the JSON part."""
    parameters = given.parameters or InputParameters()
    if parameters.shared_memory_region is not None:
        raise BadInference("inputs: expected the data in the request, found a region of shared memory")
    size = parameters.binary_data_size
    if (size or 0) != len(binary):
        raise BadInference(
            f"inputs: expected a binary_data_size of {len(binary):,}, the bytes after the JSON, found {size or 0:,}"
        )
    if (size is None) != isinstance(given.data, list):
        raise BadInference("inputs: expected a list in data or the parameter binary_data_size, found both or none")
    return binary if size is not None else None


def _tensor(given: RequestInput, known: tuple[Tensor, ...]) -> Tensor:
    for tensor in known:
        if (given.name, given.datatype) == (tensor.name, tensor.datatype):
            return tensor
    offered = " or ".join(f"{tensor.name} of datatype {tensor.datatype}" for tensor in known)
    raise BadInference(f"inputs: expected {offered}, found {given.name[:40]!r} of datatype {given.datatype[:40]!r}")


def _count(given: RequestInput, tensor: Tensor, most: int) -> int:
    """The number of pictures that the shape says; pictures in a column of one are pictures."""
    shape = given.shape[:1] if tensor.name == IMAGE and given.shape[1:] == [1] else given.shape
    if len(shape) != len(tensor.shape) or tuple(shape[1:]) != tensor.shape[1:] or not 1 <= shape[0] <= most:
        wanted = ", ".join(["count", *map(str, tensor.shape[1:])])
        raise BadInference(
            f"{tensor.name}: expected shape [{wanted}] with a count of 1..{most}, found {str(given.shape)[:80]}"
        )
    return shape[0]


def _wanted(request: InferenceRequest, known: tuple[Tensor, ...]) -> list[Wanted]:
    """The outputs that the request names, or all."""
    by_name = {tensor.name: tensor for tensor in known}
    named = request.outputs or [RequestOutput(name=name) for name in by_name]
    names = [output.name for output in named]
    for name in names:
        if name not in by_name or names.count(name) > 1:
            raise BadInference(f"outputs: expected each of {', '.join(by_name)} once at most, found {name[:40]!r}")
    default = bool((request.parameters or RequestParameters()).binary_data_output)
    return [_output(by_name[output.name], output.parameters or OutputParameters(), default) for output in named]


def _output(tensor: Tensor, parameters: OutputParameters, default: bool) -> Wanted:
    if parameters.shared_memory_region is not None:
        raise BadInference(f"{tensor.name}: expected an output in the answer, found a region of shared memory")
    classes = parameters.classification or 0
    most = tensor.shape[-1] if tensor.name in ("probabilities", "logits") else 0
    if classes > most:
        raise BadInference(
            f"{tensor.name}: expected a classification of at most {most}, found {classes}"
            if most
            else f"classification: expected probabilities or logits, found {tensor.name}"
        )
    return Wanted(tensor, default if parameters.binary_data is None else parameters.binary_data, classes)
