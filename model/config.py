"""The frozen, validated description of one FreqMerge model."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from model.errors import ConfigError

F = TypeVar("F", bound="Frozen")

Scoring = Literal[
    "lfgm",
    "none",
    "attention",
    "random",
    "tomecis",
    "evit",
    "pitome",
    "tofu",
    "stream_detail",
    "normalised_detail",
    "feature_detail",
    "pixel_detail",
    "detail_weighted",
    "random_merge",
    "shuffled",
    "inverted",
    "sobel",
]
"""Names of the strategies; `model.merging.strategies.STRATEGIES` has one function set for each."""

ScoreName = Literal["lfgm", "energy"]
"""The two frequency scores that every answer has, whatever the strategy: of the channel mean, and of all channels."""

SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
"""In the order of `frequency_scores` in every answer."""

BackboneArg = bool | int | float | str
"""A value that timm's `create_model` takes and JSON can hold."""


def backbone_arg(text: str) -> tuple[str, BackboneArg]:
    """Name and value of an argument written as KEY=VALUE: a number, true or false where it reads as one, else text.

    Raises `ConfigError` for a text without '='.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"expected KEY=VALUE, found {text!r}")
    for read in (int, float):
        try:
            return key, read(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value.lower(), value)


OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
"""pydantic's errors of a number outside its range."""

RANGES: dict[tuple[str, ...], str] = {
    ("ge", "le"): "{:.12g} to {:.12g}",
    ("ge", "lt"): "{:.12g} to below {:.12g}",
    ("gt", "le"): "above {:.12g}, at most {:.12g}",
    ("gt", "lt"): "above {:.12g}, below {:.12g}",
}


class Frozen(BaseModel):
    """An immutable record that refuses unknown fields and bad values with a `ConfigError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(describe(error, type(self))) from error

    @classmethod
    def from_json(cls: type[F], text: str | bytes) -> F:
        """The record that `to_json` wrote; raises `ConfigError` naming the field, the value and the range."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(describe(error, cls)) from error

    def to_json(self) -> str:
        """The record as JSON text, read back by `from_json`."""
        return self.model_dump_json()

    def replace(self: F, **changes: Any) -> F:
        """A validated copy with some fields changed."""
        return type(self)(**{**self.model_dump(), **changes})


class BackboneConfig(Frozen):
    """The timm model that merges."""

    backbone: str = Field("vit_small_patch16_224", min_length=1, description="timm model name")
    backbone_args: dict[str, BackboneArg] = Field(
        default_factory=dict, description="further arguments of timm.create_model, such as embed_dim or depth"
    )
    num_classes: int = Field(100, ge=1, description="classes of the head")
    image_size: int = Field(224, ge=8, description="side of the square image that the backbone sees, in pixels")


class MergeConfig(Frozen):
    """Merging schedule and score, whatever model merges.

    The names are the original README's (`MERGE_LAYERS`, `KEEP_RATE`, `ALPHA`, `HPF_RADIUS`) in lower case, its
    defaults likewise. `keep_rate=1` is the unmodified backbone, whatever `merge_counts` says; `alpha=0` is
    ToMe (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023) on the same blocks, and with the same
    `merge_counts` in every block ToMe as its paper runs it.
    """

    merge_layers: tuple[int, ...] = Field((4, 6, 8, 10), min_length=1, description="0-based blocks that merge")
    keep_rate: float = Field(
        0.7, ge=0.5, le=1.0, description="share of patch tokens kept by each merging block; 1 merges nothing"
    )
    merge_counts: tuple[int, ...] = Field(
        (),
        description="patch tokens merged away by each merging block, in place of keep_rate (at most half the tokens "
        "that are there); empty: by keep_rate",
    )
    alpha: float = Field(0.7, ge=0.0, le=1.0, description="frequency penalty weight; 0 is ToMe")
    hpf_radius: int = Field(2, ge=0, description="high-pass radius in frequency-grid units")
    scoring: Scoring = Field("lfgm", description="strategy that reduces tokens, by name (see model.merging.strategies)")
    rescore: Literal["grid", "pool"] = Field(
        "grid",
        description="score after the first merge: 'grid' scores again (frequency scores spread the tokens over their "
        "patches for it), 'pool' pools the first score over the patches of each token",
    )
    match_on: Literal["keys", "tokens"] = Field("keys", description="features whose cosine decides who merges")
    cosine: Literal["signed", "clamped"] = Field(
        "signed",
        description="negative cosines: 'signed' penalises them too, which raises them towards 0, "
        "'clamped' sets them to 0",
    )
    score_scale: Literal["minmax", "rank"] = Field(
        "minmax",
        description="what the penalty sees of a score: 'minmax' its value, 'rank' the share of the tokens below it",
    )
    pair_score: Literal["max", "mean"] = Field(
        "max", description="how the scores of two tokens protect their pair: the larger one, or their mean"
    )

    @field_validator("merge_layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(layer < 0 for layer in layers) or list(layers) != sorted(set(layers)):
            raise ValueError("expected ascending block indices, each at least 0 and named once")
        return layers

    @field_validator("merge_counts")
    @classmethod
    def _one_per_block(cls, counts: tuple[int, ...], others: ValidationInfo) -> tuple[int, ...]:
        layers = others.data.get("merge_layers", counts)
        if counts and len(counts) != len(layers):
            raise ValueError(f"expected none or one count for each of the {len(layers)} merge_layers")
        if any(count < 0 for count in counts):
            raise ValueError("expected counts of at least 0")
        return counts

    @property
    def merges(self) -> bool:
        """Whether any token is merged at all."""
        return self.keep_rate < 1.0 and (not self.merge_counts or any(self.merge_counts))


class ModelConfig(MergeConfig, BackboneConfig):
    """Backbone, merging schedule and score of one FreqMerge Vision Transformer."""


def describe(error: ValidationError, record: type[BaseModel]) -> str:
    """One line per bad field: its name, the value found and what was expected."""
    return "; ".join(_problem(item, record) for item in error.errors())


def _problem(item: Any, record: type[BaseModel]) -> str:
    field = ".".join(str(part) for part in item["loc"]) or record.__name__
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = message[:1].lower() + message[1:]
    if item["type"] == "extra_forbidden":
        return f"{field}: unknown field of {record.__name__}; known are {', '.join(record.model_fields)}"
    if item["type"] in OUTSIDE and len(item["loc"]) == 1 and (bounds := _range(record.model_fields[item["loc"][0]])):
        message = bounds
    if item["type"] == "missing":
        return f"{field}: missing from {record.__name__}"
    expected = message if message.startswith("expected") else f"expected {message}"
    return f"{field}: {expected}, found {item['input']!r}"


def _range(field: FieldInfo) -> str:
    """Such as '0 to 1'; empty if the field is not bounded on both sides."""
    limits = ("ge", "gt", "le", "lt")
    bounds = {name: getattr(bound, name) for bound in field.metadata for name in limits if hasattr(bound, name)}
    ends = tuple(name for name in limits if name in bounds)
    return RANGES.get(ends, "").format(*(bounds[name] for name in ends))
