"""Where numbers keep their float32 although autocast would round them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def in_full(device: str) -> AbstractContextManager[Any]:
    """A block whose products stay float32 under autocast on this type of device."""
    # entered only inside autocast: an exported or compiled graph of a whole model is to stay free of such regions
    rounds = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if rounds else nullcontext()
