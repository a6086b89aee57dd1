"""One counter of multiply-accumulates for every model: torch's own FLOP counter, halved.

Counted: linear layers, convolutions, attention products and the matrix products of the merging itself (score,
similarity, assignment). Not counted, as usual in this field: biases, norms, activations, softmax, top-k.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one normalised image through the model."""
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    model.eval()
    # the counter knows the attention kernels of CUDA but not of the CPU; the plain one is products that it knows
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    model.train(was_training)
    return int(counter.get_total_flops()) // 2


def count_parameters(model: nn.Module) -> int:
    """Trainable and frozen parameters alike."""
    return sum(parameter.numel() for parameter in model.parameters())
