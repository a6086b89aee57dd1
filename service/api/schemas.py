"""Shapes of what goes in and out, as they stand in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, with_config
from typing_extensions import TypedDict

from model.config import ScoreName
from service.pictures.colormaps import Colormap
from service.pictures.heatmap import HeatmapFormat, View

Pair = Annotated[
    tuple[int, int],
    # not prefixItems, which few generators of clients know
    WithJsonSchema({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
]


class Body(BaseModel):
    """A documented JSON body."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(BaseModel):
    """Problem document (RFC 9457); more members may follow."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="URI of the kind of problem: urn:freqmerge:problem:<reason>")
    title: str
    status: int
    detail: str = Field(description="what was expected, what was found, what to do")
    instance: str = Field(description="path of the request")
    request_id: str = Field(description="also in the header X-Request-ID and in the server's log")


# What every answer holds is made of dicts: mypy checks them where they are made, and a model would check them again.


@with_config(Body.model_config)
class Prediction(TypedDict):
    """One class and its probability."""

    class_id: Annotated[int, Field(ge=0, description="position of the class in /labels")]
    label: Annotated[str, Field(description="name of the class")]
    superclass: Annotated[str | None, Field(description="group of the class; null if the checkpoint has none")]
    probability: Annotated[float, Field(ge=0, le=1, description="softmax over all classes")]


@with_config(Body.model_config)
class ModelName(TypedDict):
    """Which weights gave an answer."""

    name: Annotated[str, Field(description="name in the checkpoint")]
    digest: Annotated[str, Field(description="SHA-256 of weights and manifest, hexadecimal")]


@with_config(Body.model_config)
class Classification(TypedDict):
    """Answer of POST /classify."""

    image_id: Annotated[str | None, Field(description="unguessable id for GET /heatmap; null if images are not kept")]
    heatmap_url: Annotated[
        str | None,
        Field(description="relative reference to the heatmap, to be resolved against the URL of this request"),
    ]
    predictions: Annotated[list[Prediction], Field(description="most probable first, `top_k` of them")]
    certain: Annotated[
        bool | None,
        Field(
            description="whether the best probability is at least `certain_from` of GET /model; null if the checkpoint "
            "has no such threshold"
        ),
    ]
    warnings: Annotated[
        list[str],
        Field(
            description="what is wrong with the file although it was classified, and that the answer is uncertain; "
            "mostly empty"
        ),
    ]
    model: ModelName
    timings_ms: Annotated[
        dict[str, float], Field(description="milliseconds per stage: read, decode, queue, copy, engine")
    ]


class BatchResult(Body):
    """One file of a batch: either predictions or a problem, never both."""

    filename: str | None = Field(description="name that the form gave to the file")
    image_id: str | None = Field(description="as in Classification")
    heatmap_url: str | None = Field(
        description="relative reference to the heatmap, to be resolved against the URL of this request"
    )
    predictions: list[Prediction] | None = Field(description="most probable first, `top_k` of them")
    certain: bool | None = Field(description="as in Classification; null with a problem, too")
    warnings: list[str] | None = Field(description="as in Classification; null with a problem")
    problem: Problem | None = Field(description="why this file has no predictions; its `status` is its own")


class BatchClassification(Body):
    """Answer of POST /classify/batch."""

    results: list[BatchResult] = Field(description="one per file, in the order of the form")
    model: ModelName
    timings_ms: dict[str, float] = Field(description="milliseconds per stage, the longest of all files")


class MergeData(Body):
    """What one merging block left."""

    layer: int = Field(description="index of the block, from 0")
    tokens: int = Field(description="patch tokens left after it")
    source_map: list[list[int]] = Field(
        description="token that owns each patch after it, in rows; -1 where the patch was pruned"
    )


class HeatmapData(Body):
    """Answer of /heatmap with `format=json`."""

    grid: Pair = Field(description="rows and columns of patches on the centred square of the picture")
    score_name: ScoreName = Field(description="which frequency score `score` is, as in the query")
    score: list[list[float]] = Field(description="frequency score per patch, 0..1, in rows")
    source_map: list[list[int]] = Field(
        description="token that owns each patch after the block `layer`, in rows; -1 where the patch was pruned"
    )
    merges: list[MergeData] = Field(description="the same for every merging block, in order")


class Label(Body):
    """One class."""

    class_id: int
    label: str
    superclass: str | None


class Labels(Body):
    """Answer of GET /labels."""

    labels: list[Label] = Field(description="all classes by id")


class EngineCard(Body):
    """How the model runs."""

    kind: str = Field(description="eager, inductor, openvino or tensorrt")
    device: str = Field(description="cpu or cuda:N")
    precision: Literal["fp32", "fp16", "bf16", "int8"] = Field(description="numbers of the backbone")
    reason: str = Field(description="why this kind was taken; empty if it was asked for")
    max_batch_size: int = Field(description="most images of one batch")


class LimitsCard(Body):
    """What a client may send."""

    formats: list[str] = Field(description="accepted picture formats")
    max_upload_bytes: int
    max_pixels: int = Field(description="of a JPEG")
    max_full_pixels: int = Field(description="of a picture in any other format")
    max_side: int = Field(description="pixels")
    max_batch_files: int = Field(description="pictures of one request to /classify/batch or the inference protocol")
    max_batch_upload_bytes: int = Field(description="bytes of such a request as a whole")
    heatmap_max_side: int = Field(description="pixels")


class ModelCard(Body):
    """Answer of GET /model."""

    name: str
    digest: str = Field(description="SHA-256 of weights and manifest, hexadecimal")
    classes: int
    parameters: int
    config: dict[str, Any] = Field(description="model config in force")
    overrides: dict[str, float] = Field(
        description="fields of the config that the operator replaced; the scores were measured without them"
    )
    schedule: list[int] = Field(description="patch tokens left after each block")
    grid: Pair = Field(description="rows and columns of patches")
    native_size: int = Field(description="side of the square that a picture is reduced to, in pixels")
    engine: EngineCard
    top1: float | None = Field(description="share of the test images whose first label is right; null if not scored")
    top5: float | None = Field(description="share of the test images with the right label among the first five")
    scores: dict[str, float] = Field(description="all scores of the checkpoint; plain_… are without merging")
    certain_from: float | None = Field(
        description="probability of the best class from which an answer counts as certain; null if the checkpoint does "
        "not say"
    )
    versions: dict[str, str] = Field(description="versions that wrote the checkpoint")
    service_version: str
    limits: LimitsCard


class Health(Body):
    """Answer of the probes."""

    status: Literal["alive", "ready"]


class Parameters(BaseModel):
    """Query parameters of a route; others are refused, for a misspelt one would silently do nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassifyQuery(Parameters):
    """Parameters of a classification."""

    top_k: int = Field(5, ge=1, le=100, description="how many predictions; fewer if the model has fewer classes")


class HeatmapQuery(Parameters):
    """Parameters of a drawing."""

    view: View = Field(
        "overlay",
        description="overlay: the score over the picture; score: the score alone; merged: one colour for the "
        "patches of each token; original: the picture; panel: original, score and overlay",
    )
    score: ScoreName = Field(
        "lfgm",
        description="which frequency score is drawn: lfgm, high-frequency energy of the channel mean, by which the "
        "model protects tokens unless it was told otherwise; energy, the same of all channels",
    )
    colormap: Colormap = Field("jet", description="colours of the score, low to high")
    layer: int | None = Field(
        None,
        ge=0,
        description="merging block, as in the model's `merge_layers`, after which the tokens are shown; "
        "default: the last",
    )
    opacity: float = Field(0.5, ge=0, le=1, description="share of the score in the overlay")
    size: int = Field(1024, ge=16, description="longer side of the drawing at most, in pixels; never enlarged")
    format: HeatmapFormat = Field("png", description="json: the numbers instead of a drawing")


class StoredHeatmapQuery(HeatmapQuery):
    """Parameters of a drawing of an image that was classified before."""

    image_id: str = Field(min_length=1, max_length=64, description="the `image_id` that /classify gave")
