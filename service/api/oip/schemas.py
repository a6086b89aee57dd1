"""Shapes of the protocol's JSON, for validation and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(ge=0, lt=1 << 63)]


class Open(BaseModel):
    """An object of the protocol, which lets others add members."""

    model_config = ConfigDict(extra="allow", frozen=True)


class InputParameters(Open):
    """Parameters of an input."""

    binary_data_size: Size | None = Field(None, description="bytes of this tensor after the JSON part")
    shared_memory_region: str | None = Field(None, description="not offered: refused")


class RequestInput(Open):
    """One input tensor."""

    name: str = Field(description="image: encoded pictures; pixels: decoded ones")
    datatype: str = Field(description="BYTES for image, UINT8 for pixels")
    shape: list[Size] = Field(max_length=8, description="[count] for image, [count, 3, side, side] for pixels")
    parameters: InputParameters | None = None
    data: Any = Field(
        None,
        description="elements, flat or nested: pictures in base64 or base64url, or numbers 0..255; "
        "not beside binary_data_size",
    )


class OutputParameters(Open):
    """Parameters of an output."""

    binary_data: bool | None = Field(None, description="whether the tensor comes after the JSON part")
    classification: int | None = Field(
        None, ge=1, description="the so many highest values instead, as texts value:index:label"
    )
    shared_memory_region: str | None = Field(None, description="not offered: refused")


class RequestOutput(Open):
    """One output that is asked for."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(Open):
    """Parameters of a request."""

    binary_data_output: bool | None = Field(None, description="whether outputs come after the JSON part by default")


class InferenceRequest(Open):
    """The JSON part of a request for inference."""

    id: str | None = Field(None, max_length=1024, description="comes back in the answer")
    parameters: RequestParameters | None = None
    inputs: list[RequestInput] = Field(min_length=1, max_length=8, description="exactly one: image or pixels")
    outputs: list[RequestOutput] | None = Field(None, max_length=32, description="all, if none is named")


class ResponseOutput(Open):
    """One output tensor, its elements in `data` or after the JSON part."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float | str] | None = None


class InferenceResponse(Open):
    """The JSON part of an answer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class TensorMetadata(Open):
    """Name, type and shape of an input or output; -1 is the number of pictures."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Open):
    """Answer of GET /v2/models/{model_name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(Open):
    """Answer of GET /v2."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(Open):
    """Answer of GET /v2/health/live."""

    live: bool


class ServerReady(Open):
    """Answer of GET /v2/health/ready."""

    ready: bool


class ModelReady(Open):
    """Answer of GET /v2/models/{model_name}/ready."""

    name: str
    ready: bool


class TensorConfig(Open):
    """One input or output of a model's configuration; `dims` is its shape without the number of pictures."""

    name: str
    data_type: str
    dims: list[int]


class InputConfig(TensorConfig):
    """One input of a model's configuration."""

    optional: bool


class QueuePolicy(Open):
    """Bounds of the queue."""

    max_queue_size: int


class DynamicBatching(Open):
    """How pictures of different requests become batches."""

    max_queue_delay_microseconds: int
    default_queue_policy: QueuePolicy


class InstanceGroup(Open):
    """Where the model runs."""

    name: str
    kind: str
    count: int
    gpus: list[int]


class ModelConfiguration(Open):
    """Answer of GET /v2/models/{model_name}/config, in the words of Triton's model configuration."""

    name: str
    platform: str
    backend: str
    max_batch_size: int = Field(description="most pictures of one request")
    input: list[InputConfig]
    output: list[TensorConfig]
    instance_group: list[InstanceGroup]
    dynamic_batching: DynamicBatching


class Duration(Open):
    """How often something happened, and how long it took altogether, in nanoseconds."""

    count: int
    ns: int


class InferenceStatistics(Open):
    """Where requests spent their time."""

    success: Duration = Field(description="requests with an answer of the model; the sum of the parts below")
    fail: Duration = Field(description="admitted pictures that ended without an answer; their time is not measured")
    queue: Duration
    compute_input: Duration = Field(description="the way of the pixels into their batch")
    compute_infer: Duration
    compute_output: Duration = Field(description="writing the answer")
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(Open):
    """Statistics of one model since the process started, over all routes."""

    name: str
    version: str
    last_inference: int = Field(description="milliseconds since 1970, 0 before the first batch")
    inference_count: int = Field(description="pictures that the model answered")
    execution_count: int = Field(description="batches that ran")
    inference_stats: InferenceStatistics
    batch_stats: list[Any] = Field(description="empty: times are not kept by batch size")


class Statistics(Open):
    """Answer of GET /v2/models/stats and GET /v2/models/{model_name}/stats."""

    model_stats: list[ModelStatistics]


class IndexRequest(Open):
    """What POST /v2/repository/index may be asked for."""

    ready: bool | None = Field(None, description="whether to leave out models that do not answer")


class IndexEntry(Open):
    """One model that the server has."""

    name: str
    version: str
    state: str = Field(description="READY or UNAVAILABLE")
    reason: str = Field(description="why it is unavailable")


class InferenceError(Open):
    """How the protocol refuses."""

    error: str = Field(description="what was expected, what was found, what to do")
