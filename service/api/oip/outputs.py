"""From the engine's answers to the bytes of an inference response. Blocking: belongs on a worker thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service.api.oip.elements import LENGTH_BYTES
from service.api.oip.metadata import VERSION
from service.api.oip.request import Inference, Wanted
from service.api.predictions import probabilities
from service.batching.waiting import Answer


class Encoded(NamedTuple):
    """A response body; `json_bytes` of it are JSON, None if all of them are."""

    body: bytes
    json_bytes: int | None


def encode(model_name: str, inference: Inference, answers: Sequence[Answer], labels: Sequence[str]) -> Encoded:
    """The answers as the tensors that the request asks for."""
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for wanted in inference.wanted:
        datatype, shape, flat = _tensor(wanted, answers, labels)
        output: dict[str, Any] = {"name": wanted.tensor.name, "datatype": datatype, "shape": list(shape)}
        if wanted.binary:
            binary.append(_bytes(flat))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = flat
        described.append(output)
    head: dict[str, Any] = {"model_name": model_name, "model_version": VERSION, "outputs": described}
    if inference.id is not None:
        head["id"] = inference.id
    json_part = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return Encoded(b"".join([json_part, *binary]), len(json_part) if binary else None)


Flat = NDArray[Any] | list[str]


def _tensor(wanted: Wanted, answers: Sequence[Answer], labels: Sequence[str]) -> tuple[str, tuple[int, ...], Flat]:
    """Datatype, shape and elements, in a row, of one output."""
    name, count = wanted.tensor.name, len(answers)
    if name == "label":
        return "BYTES", (count,), [labels[int(answer.logits.argmax())] for answer in answers]
    values = np.stack([_values(name, answer) for answer in answers])
    if wanted.classes:
        texts = [text for row in values for text in _classification(row, wanted.classes, labels)]
        return "BYTES", (count, wanted.classes), texts
    return wanted.tensor.datatype, values.shape, values.ravel()


def _values(name: str, answer: Answer) -> NDArray[Any]:
    if name == "probabilities":
        return probabilities(answer.logits).astype("<f4")
    if name == "source_map":
        return answer.source_map.astype("<i8")
    if name == "logits":
        return answer.logits.astype("<f4")
    return answer.score("energy" if name == "energy" else "lfgm").astype("<f4")


def _classification(values: NDArray[np.float32], classes: int, labels: Sequence[str]) -> list[str]:
    """The highest values as value:index:label, ties by index."""
    order = np.argsort(-values, kind="stable")[:classes]
    return [f"{values[index]:f}:{index}:{labels[index]}" for index in order.tolist()]


def _bytes(flat: Flat) -> bytes:
    if isinstance(flat, list):
        encoded = [text.encode("utf-8") for text in flat]
        return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in encoded)
    return flat.tobytes()
