"""Hooks of a block whose halves are called apart, run as `torch.nn.Module.__call__` runs them around a whole one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import BackwardHook


def enter(block: nn.Module, tokens: Tensor) -> tuple[Tensor, BackwardHook | None]:
    """The tokens that enter the block after its forward pre-hooks, and what its backward hooks need at the end."""
    for key, hook in block._forward_pre_hooks.items():
        if key in block._forward_pre_hooks_with_kwargs:
            changed = hook(block, (tokens,), {})
            changed = None if changed is None else changed[0]
        else:
            changed = hook(block, (tokens,))
        if changed is not None:
            tokens = changed[0] if isinstance(changed, tuple) else changed
    if not (block._backward_hooks or block._backward_pre_hooks):
        return tokens, None
    backward = BackwardHook(block, list(block._backward_hooks.values()), list(block._backward_pre_hooks.values()))
    (entered,) = backward.setup_input_hook((tokens,))
    return entered, backward


def leave(block: nn.Module, entered: Tensor, after: Tensor, backward: BackwardHook | None) -> Tensor:
    """The tokens that leave the block after its forward hooks, which see what entered it."""
    for key, hook in block._forward_hooks.items():
        named: tuple[dict[str, Any], ...] = ({},) if key in block._forward_hooks_with_kwargs else ()
        changed = hook(block, (entered,), *named, after)
        after = after if changed is None else changed
    return after if backward is None else backward.setup_output_hook(after)
