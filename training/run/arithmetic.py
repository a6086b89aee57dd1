"""In which numbers a run computes, and by which form of attention.

bfloat16 is chosen where the hardware multiplies it. On such a CPU attention is then computed in steps that autograd
knows (product, softmax, product), because the backward pass of torch's fused kernel is slow there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from training.config import TrainConfig

EMULATED = (
    "warning: this processor has no bfloat16 arithmetic (AVX512-BF16 or AMX), so --amp_type bfloat16 is emulated, "
    "which is slower than float32; leave it out, or use --no_amp"
)


class Arithmetic(NamedTuple):
    """What a run computes with."""

    amp_type: torch.dtype | None
    """Type of autocast; None computes in float32."""
    fused: bool
    """Whether attention is torch's fused kernel."""
    emulated: bool = False
    """Whether the hardware has no such numbers."""

    def __str__(self) -> str:
        name = str(self.amp_type or torch.float32).removeprefix("torch.")
        return f"{name}, {'fused' if self.fused else 'explicit'} attention"


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself: AVX512-BF16 or AMX."""
    asks: list[Callable[[], bool] | None] = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(ask() for ask in asks if ask is not None)


def cuda_has_bf16(device: torch.device) -> bool:
    """Whether this GPU computes in bfloat16 by itself."""
    with torch.cuda.device(device):  # torch asks the current device, and counts slow emulation unless told not to
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def chosen(config: TrainConfig, device: torch.device) -> Arithmetic:
    """The arithmetic of a run on this device: what is asked for, or the fastest that its hardware has."""
    if device.type == "cpu":
        wanted = config.amp and (config.amp_type == "bfloat16" or (config.amp_type == "auto" and has_bf16()))
        return Arithmetic(torch.bfloat16, fused=False, emulated=not has_bf16()) if wanted else Arithmetic(None, True)
    if not config.amp or device.type != "cuda":
        return Arithmetic(None, True)
    if config.amp_type == "auto":
        return Arithmetic(torch.bfloat16 if cuda_has_bf16(device) else torch.float16, True)
    return Arithmetic(torch.bfloat16 if config.amp_type == "bfloat16" else torch.float16, True)


def unfuse(model: nn.Module) -> None:
    """Makes every attention layer of timm's in the model compute in single steps."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for layer in layers:
        layer.fused_attn = False
