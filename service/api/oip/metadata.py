"""What the server and its model are called, what they take and what they give."""

from __future__ import annotations

from typing import NamedTuple

from model._version import __version__
from service.api.oip.schemas import ModelMetadata, ServerMetadata, TensorMetadata
from service.runtime.loading import ServedModel

IMAGE = "image"
"""Input of encoded pictures, one element each."""

PIXELS = "pixels"
"""Input of decoded pictures, reduced to the model's native size, channels first: red, green, blue."""

VERSION = "1"
"""The one version that is served: another checkpoint is another process."""


class Tensor(NamedTuple):
    """Name, type and shape of an input or output; -1 is the number of pictures."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def described(self) -> TensorMetadata:
        """The tensor as the protocol writes it."""
        return TensorMetadata(name=self.name, datatype=self.datatype, shape=list(self.shape))


def inputs(served: ServedModel) -> tuple[Tensor, ...]:
    """What a request holds: exactly one of these."""
    side = served.native_size
    return (Tensor(IMAGE, "BYTES", (-1,)), Tensor(PIXELS, "UINT8", (-1, 3, side, side)))


def outputs(served: ServedModel) -> tuple[Tensor, ...]:
    """What a request may ask for."""
    classes, patches = len(served.manifest.class_names), served.grid[0] * served.grid[1]
    return (
        Tensor("probabilities", "FP32", (-1, classes)),
        Tensor("logits", "FP32", (-1, classes)),
        Tensor("label", "BYTES", (-1,)),
        Tensor("frequency_score", "FP32", (-1, patches)),
        Tensor("energy", "FP32", (-1, patches)),
        Tensor("source_map", "INT64", (-1, patches)),
    )


def server_metadata() -> ServerMetadata:
    """The body of GET /v2."""
    return ServerMetadata(name="freqmerge", version=__version__, extensions=["binary_tensor_data", "classification"])


def model_metadata(served: ServedModel) -> ModelMetadata:
    """The body of GET /v2/models/{name}; the inputs are optional, for either one will do."""
    optional = {"parameters": {"optional": True}}
    return ModelMetadata(
        name=served.manifest.name,
        versions=[VERSION],
        platform=f"freqmerge_{served.engine.kind}",
        inputs=[tensor.described().model_copy(update=optional) for tensor in inputs(served)],
        outputs=[tensor.described() for tensor in outputs(served)],
    )
