"""Numbers by which the schedule of a picture can be chosen: one per picture, known before anything merges."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from model import FreqMergeViT
from model.errors import ConfigError
from model.merging.frequency import channel_energy, energy_share, mean_energy
from model.precision import in_full
from model.vit.attention import Reading
from model.vit.families import check_block
from model.vit.merging_vit import Stem

ENERGIES = {
    "lfgm_energy": "energy of the channel mean (LFGM)",
    "energy": "energy of all channels",
    "energy_share": "energy of all channels over the variance",
}
"""High-frequency energies of the patch tokens that enter the first merging block, not normalised, with their labels."""

FIRST_BLOCK = {
    "attention_entropy": "block 0: entropy of the attention",
    "token_variance": "block 0: variance of the tokens",
    "token_norm": "block 0: norm of the tokens",
}
"""What the plain model's first block tells, with labels."""

STATISTICS = {**ENERGIES, **FIRST_BLOCK}
"""All of them, in the order of `read`'s columns."""


def read(
    model: FreqMergeViT, images: Float[Tensor, "batch 3 height width"], stem: Stem
) -> Float[Tensor, "batch statistics"]:
    """The `STATISTICS` of normalised images, one column each, float32.

    Raises `ConfigError` if block 0 merges (nothing would be known before), and `BackboneError` if its attention cannot
    be read.
    """
    if stem.layer == 0:
        raise ConfigError(
            "merge_layers: expected blocks from 1 on, found 0; a picture's schedule is chosen before anything merges"
        )
    patches = stem.tokens[:, model.vit.num_prefix_tokens :]
    return torch.cat([energies(model, patches), first_block(model, images)], dim=1)


def energies(model: FreqMergeViT, patches: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch energies"]:
    """The `ENERGIES` of patch tokens on the model's grid: means over the patches, and a share."""
    with in_full(patches.device.type):
        wide = patches.float()
        columns = [
            mean_energy(wide.mean(dim=2), model.basis).mean(dim=1),
            channel_energy(wide, model.basis).mean(dim=1),
            energy_share(wide, model.basis),
        ]
    return torch.stack(columns, dim=1)


def first_block(
    model: FreqMergeViT, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch first_block"]:
    """The `FIRST_BLOCK` statistics of normalised images.

    Entropy of the attention that the patches receive from the class token (from all tokens where there is none), mean
    over heads, as a share of its maximum log(patches); variance of the tokens over the grid after the block, mean over
    channels; their mean Euclidean norm.
    """
    family, vit = model.family, model.vit
    block, prefix = vit.blocks[0], vit.num_prefix_tokens
    check_block(family, block, 0)
    tokens, rotary = family.embed(vit, images)
    turn = None if rotary is None else rotary[0]
    attended = family.attention_half(block, tokens, turn, None, Reading(family.has_class_token(vit), True))
    after = family.mlp_half(block, attended.tokens)[:, prefix:].float()
    assert attended.received is not None  # asked for
    columns = [
        entropy(attended.received[:, prefix:].float()),
        after.var(dim=1, correction=0).mean(dim=1),
        after.norm(dim=2).mean(dim=1),
    ]
    return torch.stack(columns, dim=1)


def entropy(attention: Float[Tensor, "batch patches"]) -> Float[Tensor, " batch"]:
    """Entropy of the shares that the patches have of the attention, over its maximum log(patches): 0..1."""
    shares = attention / attention.sum(dim=1, keepdim=True)
    spread: Tensor = torch.special.entr(shares).sum(dim=1)
    return spread / math.log(shares.shape[1])
