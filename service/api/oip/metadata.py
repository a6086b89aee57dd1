"""What the server and its model are called, what they take and what they give."""

from __future__ import annotations

from typing import Any, NamedTuple

from model._version import __version__
from service.api.oip.schemas import (
    DynamicBatching,
    IndexEntry,
    InputConfig,
    InstanceGroup,
    ModelConfiguration,
    ModelMetadata,
    QueuePolicy,
    ServerMetadata,
    TensorConfig,
    TensorMetadata,
)
from service.errors import RequestError
from service.runtime.served import ServedModel
from service.settings import Settings

IMAGE = "image"
"""Input of encoded pictures, one element each."""

PIXELS = "pixels"
"""Input of decoded pictures, reduced to the model's native size, channels first: red, green, blue."""

VERSION = "1"
"""The one version that is served: another checkpoint is another process."""

SERVER = "freqmerge"

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
"""Those of Triton's extensions that are offered as a whole; of its model repository there is the index alone."""

DATA_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "UINT8": "TYPE_UINT8"}
"""The protocol's datatypes as a model configuration names them."""


class Tensor(NamedTuple):
    """Name, type and shape of an input or output; -1 is the number of pictures."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def described(self) -> TensorMetadata:
        """The tensor as the protocol writes it."""
        return TensorMetadata(name=self.name, datatype=self.datatype, shape=list(self.shape))

    @property
    def configured(self) -> dict[str, Any]:
        """The tensor as a model configuration writes it: one picture's share of the shape."""
        return {"name": self.name, "data_type": DATA_TYPES[self.datatype], "dims": list(self.shape[1:])}


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
    return ServerMetadata(name=SERVER, version=__version__, extensions=list(EXTENSIONS))


def model_metadata(served: ServedModel) -> ModelMetadata:
    """The body of GET /v2/models/{name}; the inputs are optional, for either one will do."""
    optional = {"parameters": {"optional": True}}
    return ModelMetadata(
        name=served.manifest.name,
        versions=[VERSION],
        platform=_platform(served),
        inputs=[tensor.described().model_copy(update=optional) for tensor in inputs(served)],
        outputs=[tensor.described() for tensor in outputs(served)],
    )


def model_configuration(served: ServedModel, settings: Settings) -> ModelConfiguration:
    """The body of GET /v2/models/{name}/config."""
    name, (device, _, number) = served.manifest.name, served.engine.device.partition(":")
    gpus = [int(number or 0)] if device == "cuda" else []
    group = InstanceGroup(name=f"{name}_0", kind="KIND_GPU" if gpus else "KIND_CPU", count=1, gpus=gpus)
    return ModelConfiguration(
        name=name,
        platform=_platform(served),
        backend=SERVER,
        max_batch_size=settings.max_images_per_request,
        input=[InputConfig(**tensor.configured, optional=True) for tensor in inputs(served)],
        output=[TensorConfig(**tensor.configured) for tensor in outputs(served)],
        instance_group=[group],
        dynamic_batching=DynamicBatching(
            max_queue_delay_microseconds=round(1_000_000 * settings.max_queue_delay_s),
            default_queue_policy=QueuePolicy(max_queue_size=settings.max_queue_size),
        ),
    )


def index_entry(served: ServedModel, obstacle: RequestError | None) -> IndexEntry:
    """The model in the answer of POST /v2/repository/index; `obstacle` is what keeps it from answering."""
    state, reason = ("READY", "") if obstacle is None else ("UNAVAILABLE", obstacle.detail)
    return IndexEntry(name=served.manifest.name, version=VERSION, state=state, reason=reason)


def _platform(served: ServedModel) -> str:
    return f"{SERVER}_{served.engine.kind}"
