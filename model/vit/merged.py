"""Token merging for a timm model that already exists, without training it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from model.config import MergeConfig
from model.errors import BackboneError, ConfigError
from model.merging.schedule import default_layers, merged_per_block
from model.vit.families import family_of
from model.vit.merging_vit import Merging, Passed, Stem


class MergedViT(Merging):
    """A timm model that merges, in the place of the model itself: a call returns what the model returns.

    `vit` is the model that was given, its own forward untouched: whoever calls it gets the answer without merging,
    and dropping this module takes merging away. Training, moving or freezing the one does so to the other.
    """

    def __init__(self, vit: Any, config: MergeConfig) -> None:
        super().__init__(vit, config)
        self.training = vit.training

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Any:
        """Logits (or features, where the model has no head) of normalised images, as the model returns them."""
        return self._head(self._pass(images).stream)

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch all_tokens dim"]:
        """Prefix and patch tokens after the final norm, in the model's own shape: every patch has the token that it
        was merged into, so that pooling over patches weighs tokens by their size."""
        return self._on_grid(self._pass(images).stream)

    def forward_head(self, features: Float[Tensor, "batch all_tokens dim"], pre_logits: bool = False) -> Any:
        """The model's own head on what `forward_features` returned."""
        return self.vit.forward_head(features, pre_logits=pre_logits)

    def set_input_size(self, *arguments: Any, **named: Any) -> None:
        """The model's own change of image or patch size; grid, schedule and score follow it."""
        self.vit.set_input_size(*arguments, **named)
        self._follow_grid()

    def _pass(self, images: Tensor, trace: bool = False, stem: Stem | None = None) -> Passed:
        self._follow_grid()
        if self.basis.device != images.device:  # the model was moved by its own name
            self.basis = self._basis_on(images.device)
        return super()._pass(images, trace, stem)

    @property
    def num_classes(self) -> int:
        """The model's own, as are those below."""
        return int(self.vit.num_classes)

    @property
    def num_features(self) -> int:
        return int(self.vit.num_features)

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.vit.num_prefix_tokens)

    @property
    def pretrained_cfg(self) -> Any:
        return self.vit.pretrained_cfg

    def get_classifier(self) -> Any:
        return self.vit.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.vit.reset_classifier(num_classes, global_pool)


def merge_tokens(
    vit: nn.Module,
    *,
    keep_rate: float | None = None,
    merge_layers: Sequence[int] | None = None,
    r: int | tuple[int, float] | list[int] | None = None,
    **options: Any,
) -> MergedViT:
    """The timm model `vit` with token merging, sharing its parameters; `vit` itself stays as it is.

    Where and how many: `keep_rate` (default 0.7) of the patch tokens stay at each of `merge_layers` (default: blocks
    4, 6, 8 and 10 of 12, and in proportion of another depth, see `merging.schedule.default_layers`); or `r` as ToMe
    takes it, a count, a tuple (count, inflect) or a list of counts per block (see `merged_per_block`). `options` are
    the other fields of `MergeConfig`, such as `alpha` (0 is ToMe) and `scoring`.

    Raises `BackboneError` for a model that cannot merge and `ConfigError` for a bad or contradicting argument.
    """
    if isinstance(vit, Merging):
        raise BackboneError(f"backbone: expected a timm model, found {type(vit).__name__}, which merges; pass its .vit")
    given = {"keep_rate": keep_rate, "merge_layers": merge_layers, "merge_counts": options.pop("merge_counts", None)}
    named = {name: value for name, value in given.items() if value is not None}
    if r is not None and named:
        raise ConfigError(f"r: says both where and how many merge; expected r alone, found {_listed(named)} as well")
    if keep_rate is not None and "merge_counts" in named:
        raise ConfigError("keep_rate and merge_counts: each says how many merge; expected one of them, found both")
    family_of(vit, merges=False)
    depth = len(list(vit.get_submodule("blocks").children()))
    schedule = _counted(r, depth) if r is not None else {"merge_layers": default_layers(depth), **named}
    return MergedViT(vit, MergeConfig(**schedule, **options))


def _counted(r: Any, depth: int) -> dict[str, Any]:
    """`r` as fields of a `MergeConfig`; blocks that merge none are no merging blocks."""
    counts = {layer: count for layer, count in enumerate(merged_per_block(r, depth)) if count}
    if not counts:
        return {"merge_layers": default_layers(depth), "keep_rate": 1.0}
    return {"merge_layers": tuple(counts), "merge_counts": tuple(counts.values())}


def _listed(names: Any) -> str:
    return " and ".join(names)
