"""The token-merging Vision Transformer, built around an unmodified timm model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import SCORE_NAMES, MergeConfig, ModelConfig
from model.errors import ConfigError
from model.merging.frequency import energy_score, low_pass_basis, rank, score_values
from model.merging.matching import assignment_matrix, follow, merge_rotary, unmerge
from model.merging.schedule import token_schedule
from model.merging.strategies import STRATEGIES, First, Strategy, View
from model.precision import in_full
from model.vit import backbone, hooks
from model.vit.attention import Reading
from model.vit.families import Rotary, check_block, family_of


class Trace(NamedTuple):
    """What one merging block saw and did."""

    layer: int
    score: Float[Tensor, "batch patches"]
    """Frequency score of every patch, 0..1."""
    source_map: Int[Tensor, "batch patches"]
    """Owner of every patch after the block."""


class FreqMergeOutput(NamedTuple):
    """Answer of a `FreqMergeViT`."""

    logits: Float[Tensor, "batch classes"]
    frequency_scores: Float[Tensor, "batch scores patches"]
    """The scores of `model.config.SCORE_NAMES`, in order, at the first merging block: 0..1 per image, float32, whatever
    the scoring strategy and the keep rate."""
    source_maps: Int[Tensor, "batch merging_blocks patches"]
    """Index, among the patch tokens left after each merging block, of the token that owns each patch; -1 where it was
    pruned."""
    trace: tuple[Trace, ...] = ()

    @property
    def frequency_score(self) -> Float[Tensor, "batch patches"]:
        """LFGM, of the channel mean."""
        return self.frequency_scores[:, SCORE_NAMES.index("lfgm")]

    @property
    def energy(self) -> Float[Tensor, "batch patches"]:
        """High-frequency energy of all channels."""
        return self.frequency_scores[:, SCORE_NAMES.index("energy")]

    @property
    def source_map(self) -> Int[Tensor, "batch patches"]:
        """The source map at the end."""
        return self.source_maps[:, -1]


class Stream(NamedTuple):
    """Tokens on their way through the blocks."""

    tokens: Float[Tensor, "batch all_tokens dim"]
    """Prefix tokens, then patch tokens."""
    size: Float[Tensor, "batch tokens"]
    """Patches inside each patch token."""
    source_map: Int[Tensor, "batch patches"]
    rotary: Rotary
    """Of each patch token; a merged one has the mean of its patches."""

    def turn(self, layer: int) -> Float[Tensor, "#batch heads tokens angles"] | None:
        """The rotary embedding in one block."""
        return _turn(self.rotary, layer)


class Stem(NamedTuple):
    """What enters the first merging block; the same for every config whose first merging block is this one."""

    layer: int
    tokens: Float[Tensor, "batch all_tokens dim"]
    rotary: Rotary


class Passed(NamedTuple):
    """What came out of the blocks."""

    stream: Stream
    """Its tokens after the final norm."""
    first: First
    first_tokens: Float[Tensor, "batch patches dim"]
    """Patch tokens of the first merging block after its attention, before anything merges there."""
    source_maps: list[Tensor]
    steps: list[Trace]


class Merging(nn.Module):
    """A timm model that merges patch tokens between attention and MLP of some blocks; its subclasses say what a call
    returns.

    Parameters stay timm's own under the prefix `vit.`, the very objects of the model that was given, which itself
    stays as it is. Raises `ConfigError` for merge layers outside the depth and `BackboneError` for a model whose
    tokens cannot be merged.
    """

    basis: Tensor

    def __init__(self, vit: Any, config: MergeConfig) -> None:
        super().__init__()
        self.family = family_of(vit, config.merges)
        self.vit = vit
        self.config = config
        self.grid: tuple[int, int] = tuple(self.vit.patch_embed.grid_size)
        """Rows and columns of patches."""
        self.schedule = self._scheduled(self.grid)
        """Patch tokens left after each block."""
        for layer in config.merge_layers:
            check_block(self.family, self.vit.blocks[layer], layer)
        self.register_buffer("basis", self._basis_on(next(vit.parameters()).device), persistent=False)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm's optimizer factories keep free of weight decay: the model's own choice."""
        return {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The model's own groups of parameters by depth, for timm's layer decay, under their names here."""
        return {group: _below_vit(patterns) for group, patterns in self.vit.group_matcher(coarse=coarse).items()}

    def _scheduled(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Patch tokens left after each block on a grid; raises `ConfigError` where the config does not fit it."""
        config = self.config
        return token_schedule(
            grid[0] * grid[1], len(self.vit.blocks), config.merge_layers, config.keep_rate, config.merge_counts
        )

    def _follow_grid(self) -> None:
        """Takes over the grid that the model has now, if `vit.set_input_size` changed it since."""
        grid: tuple[int, int] = tuple(self.vit.patch_embed.grid_size)
        if grid != self.grid:
            self.schedule = self._scheduled(grid)
            self.grid = grid
            self.basis = self._basis_on(self.basis.device)

    def _basis_on(self, device: torch.device) -> Tensor:
        """Low-frequency modes of the grid, float32."""
        return low_pass_basis(self.grid, self.config.hpf_radius).float().to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Merging:
        """Moves and casts as every module does; a basis that moved, which is known and not learned, is made anew.

        In float32. Where nothing moves it stays the very tensor: CUDA graphs read it at its address.
        """
        before = self.basis
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.basis is not before:
            self.basis = self._basis_on(self.basis.device)
        return self

    def explain(
        self, images: Float[Tensor, "batch channels height width"], trace: bool = False, stem: Stem | None = None
    ) -> FreqMergeOutput:
        """Logits, frequency scores and source maps of normalised images; with `trace`, of every merging block.

        `stem` is what `stem` gave for these images, and saves its time.
        """
        passed = self._pass(images, trace, stem)
        logits = self._head(passed.stream)
        maps = torch.stack(passed.source_maps, dim=1)
        return FreqMergeOutput(logits, self._scores(passed), maps, tuple(passed.steps))

    def _scores(self, passed: Passed) -> Float[Tensor, "batch scores patches"]:
        with in_full(passed.first_tokens.device.type):
            # detached: nothing is learnt from this map, and training would keep its float32 tokens for the way back
            energy = energy_score(passed.first_tokens.detach(), self.basis)
        return torch.stack([passed.first.score, energy], dim=1)  # in the order of SCORE_NAMES

    def stem(self, images: Float[Tensor, "batch channels height width"]) -> Stem:
        """What enters the first merging block: no score and no strategy has a say in it."""
        x, rotary = self.family.embed(self.vit, images)
        first = min(self.config.merge_layers)
        for layer, block in enumerate(self.vit.blocks[:first]):
            x = self._run(self.family.whole, block, x, _turn(rotary, layer), None)
        return Stem(first, x, rotary)

    def _pass(self, images: Tensor, trace: bool = False, stem: Stem | None = None) -> Passed:
        vit, patches = self.vit, self.grid[0] * self.grid[1]
        stem = self.stem(images) if stem is None else stem
        x = stem.tokens
        stream = Stream(
            x,
            size=torch.ones(x.shape[0], patches, device=x.device),
            source_map=torch.arange(patches, device=x.device).expand(x.shape[0], -1),
            rotary=stem.rotary,
        )
        first: First | None = None
        first_tokens: Tensor | None = None
        steps: list[Trace] = []
        owners: list[Tensor] = []
        for layer, block in enumerate(vit.blocks[stem.layer :], stem.layer):
            bias = self._size_bias(stream) if self.strategy.weighs_size and self._merged_before(layer) else None
            if layer not in self.config.merge_layers:
                x = self._run(self.family.whole, block, stream.tokens, stream.turn(layer), bias)
                stream = stream._replace(tokens=x)
                continue
            entered, backward = hooks.enter(block, stream.tokens)
            view, stream = self._attend(layer, images, stream._replace(tokens=entered), bias, first)
            first_tokens = view.tokens if first_tokens is None else first_tokens
            with in_full(x.device.type):
                first, stream = self._reduce(view, stream, self.schedule[layer])
            if trace:
                score = first.score if self.config.rescore == "pool" else view.patch_score()
                steps.append(Trace(layer, score, stream.source_map))
            after = self._run(self.family.mlp_half, block, stream.tokens)
            stream = stream._replace(tokens=hooks.leave(block, entered, after, backward))
            owners.append(stream.source_map)
        assert first is not None  # merge_layers is never empty
        assert first_tokens is not None
        return Passed(stream._replace(tokens=vit.norm(stream.tokens)), first, first_tokens, owners, steps)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Training computes each block's activations again in the backward pass instead of keeping them, or no more."""
        self.vit.set_grad_checkpointing(enable)

    def _run(self, part: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """A block or half of one, its activations forgotten where gradients are checkpointed."""
        if self.vit.grad_checkpointing and self.training:
            return checkpoint(part, *arguments, use_reentrant=False, **named)
        return part(*arguments, **named)

    def _attend(
        self, layer: int, images: Tensor, stream: Stream, bias: Tensor | None, first: First | None
    ) -> tuple[View, Stream]:
        """The attention half of a merging block, and what its strategy then sees."""
        prefix = self.vit.num_prefix_tokens
        x, keys, received, importance = self._run(
            self.family.attention_half,
            self.vit.blocks[layer],
            stream.tokens,
            stream.turn(layer),
            bias,
            Reading(self.family.has_class_token(self.vit), self.strategy.needs_attention),
        )
        if first is None:
            with in_full(x.device.type):  # scores, similarities and indices
                mean = x[:, prefix:].float().mean(dim=2)
                first = First(mean, score_values(mean, self.basis))
        view = View(
            tokens=x[:, prefix:],
            size=stream.size,
            features=(keys if self.config.match_on == "keys" else x)[:, prefix:],
            attention=None if received is None else received[:, prefix:],
            importance=None if importance is None else importance[:, prefix:],
            images=images,
            source_map=stream.source_map,
            grid=self.grid,
            basis=self.basis,
            first=first,
            depth=layer / len(self.vit.blocks),
            config=self.config,
        )
        return view, stream._replace(tokens=x)

    def _reduce(self, view: View, stream: Stream, kept_count: int) -> tuple[First, Stream]:
        """The stream with `kept_count` patch tokens, and what later blocks may ask about the first that merged."""
        first = view.first
        if kept_count == view.tokens.shape[1]:
            return first, stream
        if self.config.rescore == "pool" and first.protection is not None:
            score: Tensor | None = view.pooled(first.protection)
        else:
            score = self.strategy.score(view)
        if view.is_first:
            first = first._replace(protection=score)
        if score is not None and self.config.score_scale == "rank":
            score = rank(score)
        row = self.strategy.assign(view, score, kept_count)
        assignment = assignment_matrix(row, kept_count)
        tokens, size = self.strategy.combine(view, assignment)
        prefix = stream.tokens[:, : self.vit.num_prefix_tokens]
        rotary = None if stream.rotary is None else merge_rotary(stream.rotary, view.size, assignment)
        return first, Stream(torch.cat([prefix, tokens], dim=1), size, follow(stream.source_map, row), rotary)

    @property
    def strategy(self) -> Strategy:
        """What decides which tokens are reduced."""
        return STRATEGIES[self.config.scoring]

    def _merged_before(self, layer: int) -> bool:
        return layer > 0 and self.schedule[layer - 1] < self.grid[0] * self.grid[1]

    def _size_bias(self, stream: Stream) -> Tensor:
        """Proportional attention: log token size, added to the logits of every key."""
        prefix = stream.size.new_zeros(stream.size.shape[0], self.vit.num_prefix_tokens)
        log_size = torch.cat([prefix, stream.size.log()], dim=1).to(stream.tokens.dtype)
        # [batch, 1, queries, keys] in full: TensorRT's attention broadcasts only the first two axes
        return log_size[:, None, None, :].expand(-1, 1, stream.tokens.shape[1], -1)

    def _on_grid(self, stream: Stream) -> Float[Tensor, "batch all_tokens dim"]:
        """Prefix tokens, then every patch with the token that owns it: timm's own shape."""
        prefix, tokens = stream.tokens.tensor_split([self.vit.num_prefix_tokens], dim=1)
        if tokens.shape[1] == stream.source_map.shape[1]:
            return stream.tokens
        return torch.cat([prefix, unmerge(tokens, stream.source_map)], dim=1)

    def _head(self, stream: Stream) -> Any:
        """timm's classifier head, its average pooling weighted by token size: a tensor, or two in distillation."""
        vit, x, size = self.vit, stream.tokens, stream.size
        if vit.global_pool == "":
            return vit.forward_head(self._on_grid(stream))
        if not (self.config.merges and self.strategy.weighs_size) or vit.global_pool in ("token", "max"):
            return vit.forward_head(x)
        included = 0 if self.family.pools_prefix(vit) else vit.num_prefix_tokens
        x = x[:, included:]
        weight = torch.cat([size.new_ones(size.shape[0], vit.num_prefix_tokens), size], dim=1)[:, included:]
        pool: nn.Module | None = vit.attn_pool
        if pool is not None:
            pooled = pool(x, attn_mask=weight.log().to(x.dtype)[:, None, None, :])
        else:
            share = (weight / weight.sum(dim=1, keepdim=True)).to(x.dtype)
            pooled = (share[:, None, :] @ x)[:, 0]
            if vit.global_pool == "avgmax":
                pooled = 0.5 * (x.amax(dim=1) + pooled)
        return vit.head(vit.head_drop(vit.fc_norm(pooled)))


class FreqMergeViT(Merging):
    """A FreqMerge model as it is trained, saved and served: every call returns a `FreqMergeOutput`."""

    config: ModelConfig

    def __init__(self, vit: nn.Module, config: ModelConfig) -> None:
        super().__init__(vit, config)

    def forward(self, images: Float[Tensor, "batch 3 height width"], trace: bool = False) -> FreqMergeOutput:
        """Logits, frequency scores and source maps of normalised images; with `trace`, of every merging block."""
        return self.explain(images, trace)

    def _pass(self, images: Tensor, trace: bool = False, stem: Stem | None = None) -> Passed:
        if (grid := tuple(self.vit.patch_embed.grid_size)) != self.grid:
            raise ConfigError(
                f"image_size: expected the {self.grid[0]}x{self.grid[1]} grid that the model was built with, found "
                f"{grid[0]}x{grid[1]}; build it again with that image_size and load the weights into it"
            )
        return super()._pass(images, trace, stem)


def _turn(rotary: Rotary, layer: int) -> Float[Tensor, "#batch heads tokens angles"] | None:
    return None if rotary is None else rotary[layer if len(rotary) > 1 else 0]


def _below_vit(patterns: Any) -> Any:
    """A pattern of parameter names, or a list of (pattern, order), for the same names behind the prefix `vit.`."""
    if isinstance(patterns, str):
        return r"vit\.(?:" + re.sub(r"(?<!\[)\^", "", patterns) + ")"
    return [(_below_vit(pattern), *order) for pattern, *order in patterns]


def build(
    config: ModelConfig, pretrained: bool = False, *, drop_path: float = 0.0, patch_drop: float = 0.0
) -> FreqMergeViT:
    """The model that `config` describes, freshly initialised, or with timm's published weights if `pretrained`.

    `drop_path` (stochastic depth rate) and `patch_drop` (share of patches left out) regularise training and
    do nothing in evaluation mode; dropped patches leave no grid, so `patch_drop` needs keep_rate=1.
    Raises `BackboneError` if timm does not know the backbone, refuses its arguments, or gives a model
    whose tokens cannot be merged.
    """
    arguments: dict[str, Any] = {
        "num_classes": config.num_classes,
        "img_size": config.image_size,
        **config.backbone_args,
    }
    dropped = {"drop_path_rate": drop_path, "patch_drop_rate": patch_drop}
    arguments |= {name: rate for name, rate in dropped.items() if rate}
    if patch_drop and config.merges:
        raise ConfigError(
            f"patch_drop: expected 0 where tokens merge (keep_rate {config.keep_rate}), found {patch_drop}"
        )
    return FreqMergeViT(backbone.create(config.backbone, pretrained, **arguments), config)
