"""Slow twins: the published algorithms as plain loops, to test the fast paths against."""

from __future__ import annotations

import math

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor


def fft_score(tokens: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """LFGM exactly as the seed writes it: rfft2, disc mask, irfft2, square, min-max."""
    rows, columns = grid
    mean = tokens.mean(dim=2).reshape(-1, rows, columns)
    spectrum = torch.fft.rfft2(mean, norm="ortho")
    fy = torch.fft.fftfreq(rows, 1 / rows, dtype=mean.dtype)[:, None]
    fx = torch.fft.rfftfreq(columns, 1 / columns, dtype=mean.dtype)[None, :]
    spectrum = spectrum * (fy**2 + fx**2 > radius**2)
    energy = torch.fft.irfft2(spectrum, s=grid, norm="ortho").square().flatten(1)
    low, high = energy.amin(1, keepdim=True), energy.amax(1, keepdim=True)
    return (energy - low) / (high - low + 1e-6)


def tome_owners(keys: Tensor, merged: int) -> list[int]:
    """New token of each of one image's patch tokens [tokens, dim], by ToMe's bipartite soft matching."""
    count = keys.shape[0]
    unit = [key / key.norm() for key in keys]
    sources, destinations = range(1, count, 2), range(0, count, 2)
    best = {}
    for i in sources:
        similarity = {j: float(unit[i] @ unit[j]) for j in destinations}
        partner = max(similarity, key=lambda j: similarity[j])
        best[i] = (similarity[partner], partner)
    leaving = sorted(sources, key=lambda i: best[i][0], reverse=True)[:merged]
    staying = [i for i in sources if i not in leaving]
    place = {token: index for index, token in enumerate([*staying, *destinations])}
    return [place[best[i][1]] if i in leaving else place[i] for i in range(count)]


def merge_by_loop(tokens: Tensor, size: list[float], owners: list[int]) -> tuple[Tensor, list[float]]:
    """Size-weighted mean of the tokens [tokens, dim] that share an owner."""
    count = max(owners) + 1
    total = [0.0] * count
    merged = torch.zeros(count, tokens.shape[1], dtype=tokens.dtype)
    for token, weight, owner in zip(tokens, size, owners, strict=True):
        merged[owner] += weight * token
        total[owner] += weight
    return merged / torch.tensor(total, dtype=tokens.dtype)[:, None], total


@torch.no_grad()
def tome_logits(
    vit: VisionTransformer, image: Tensor, merge_layers: list[int], kept: list[int]
) -> tuple[Tensor, list[int]]:
    """Logits and source map of one image [3, height, width] under ToMe, token by token and head by head."""
    prefix = vit.num_prefix_tokens
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image[None])))[0]
    size = [1.0] * (len(x) - prefix)
    owner_of_patch = list(range(len(size)))
    for layer, block in enumerate(vit.blocks):
        attention, keys = _attention(block.attn, block.norm1(x), [1.0] * prefix + size)
        x = x + block.ls1(attention)
        if layer in merge_layers:
            owners = tome_owners(keys[prefix:], len(size) - kept[layer])
            merged, size = merge_by_loop(x[prefix:], size, owners)
            x = torch.cat([x[:prefix], merged])
            owner_of_patch = [owners[token] for token in owner_of_patch]
        x = x + block.ls2(block.mlp(block.norm2(x)))
    x = vit.norm(x)
    if vit.global_pool == "token":
        pooled = x[0]
    else:
        pooled = sum(weight * token for weight, token in zip(size, x[prefix:], strict=True)) / sum(size)
    return vit.head(vit.fc_norm(pooled)), owner_of_patch


def _attention(attn: torch.nn.Module, x: Tensor, size: list[float]) -> tuple[Tensor, Tensor]:
    count, width = len(x), attn.head_dim
    qkv = attn.qkv(x)
    heads, keys = [], []
    for head in range(attn.num_heads):
        query, key, value = (qkv[:, part * attn.attn_dim + head * width :][:, :width] for part in range(3))
        query, key = attn.q_norm(query), attn.k_norm(key)
        rows = []
        for i in range(count):
            logits = torch.stack([query[i] @ key[j] / math.sqrt(width) + math.log(size[j]) for j in range(count)])
            rows.append(logits.softmax(0) @ value)
        heads.append(torch.stack(rows))
        keys.append(key)
    return attn.proj(torch.cat(heads, dim=1)), torch.stack(keys).mean(0)
