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


def fft_energy(features: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """High-frequency energy of every channel of [batch, patches, channels] by the FFT, mean over channels."""
    rows, columns = grid
    maps = features.transpose(1, 2).reshape(features.shape[0], -1, rows, columns)
    fy = torch.fft.fftfreq(rows, 1 / rows, dtype=maps.dtype)[:, None]
    fx = torch.fft.rfftfreq(columns, 1 / columns, dtype=maps.dtype)[None, :]
    spectrum = torch.fft.rfft2(maps, norm="ortho") * (fy**2 + fx**2 > radius**2)
    return torch.fft.irfft2(spectrum, s=grid, norm="ortho").square().mean(dim=1).flatten(1)


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


def evit(tokens: Tensor, attention: list[float], kept: int) -> tuple[Tensor, list[int]]:
    """EViT on one image's tokens [tokens, dim]: the most attended stay in order, one sum of the rest follows."""
    ranked = sorted(range(len(attention)), key=lambda i: attention[i], reverse=True)
    staying = sorted(ranked[: kept - 1])
    fused = sum((attention[i] * tokens[i] for i in ranked[kept - 1 :]), torch.zeros_like(tokens[0]))
    owners = [staying.index(i) if i in staying else kept - 1 for i in range(len(attention))]
    return torch.stack([*(tokens[i] for i in staying), fused]), owners


def pitome_owners(keys: Tensor, merged: int, depth: float) -> list[int]:
    """New token of each of one image's tokens [tokens, dim], by PiToMe's energy and ordered bipartite matching."""
    count = len(keys)
    margin = 0.9 - 0.9 * depth
    cosine = [[float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in range(count)] for i in range(count)]
    energy = [sum(c if c >= margin else math.exp(c - margin) - 1 for c in cosine[i]) / count for i in range(count)]
    ranked = sorted(range(count), key=lambda i: energy[i], reverse=True)[: 2 * merged]
    sources, destinations = ranked[0::2], ranked[1::2]
    staying = [i for i in range(count) if i not in sources]
    partner = {i: max(destinations, key=lambda j: cosine[i][j]) for i in sources}
    return [staying.index(partner.get(i, i)) for i in range(count)]


def sobel_energy(image: Tensor) -> Tensor:
    """Sum of the squared Sobel responses of an image [rows, columns], pixel by pixel, its border repeated outwards."""
    rows, columns = image.shape

    def at(y: int, x: int) -> float:
        return float(image[min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)])

    result = []
    for y in range(rows):
        for x in range(columns):
            smooth = ((-1, 1), (0, 2), (1, 1))
            across = sum(weight * (at(y + d, x + 1) - at(y + d, x - 1)) for d, weight in smooth)
            down = sum(weight * (at(y + 1, x + d) - at(y - 1, x + d)) for d, weight in smooth)
            result.append(across**2 + down**2)
    return torch.tensor(result)


@torch.no_grad()
def class_importance(attn: torch.nn.Module, x: Tensor) -> Tensor:
    """Attention of the first token to each of x [tokens, dim], times the norm of its value, mean over heads."""
    total = torch.zeros(len(x))
    qkv, width = attn.qkv(x), attn.head_dim
    for head in range(attn.num_heads):
        query, key, value = (qkv[:, part * attn.attn_dim + head * width :][:, :width] for part in range(3))
        logits = torch.stack([query[0] @ row / math.sqrt(width) for row in key])
        total += logits.softmax(0) * torch.stack([row.norm() for row in value])
    return total / attn.num_heads


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
