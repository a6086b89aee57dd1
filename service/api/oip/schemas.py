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
    parameters: InputParameters = InputParameters()
    data: Any = Field(
        None,
        description="elements, flat or nested: pictures in base64, or numbers 0..255; not beside binary_data_size",
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
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Open):
    """Parameters of a request."""

    binary_data_output: bool = Field(False, description="whether outputs come after the JSON part by default")


class InferenceRequest(Open):
    """The JSON part of a request for inference."""

    id: str | None = Field(None, max_length=1024, description="comes back in the answer")
    parameters: RequestParameters = RequestParameters()
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


class InferenceError(Open):
    """How the protocol refuses."""

    error: str = Field(description="what was expected, what was found, what to do")
