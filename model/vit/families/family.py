"""What merging asks of a family of timm models: the blocks in two halves, and where tokens are.

timm's blocks give neither their keys nor a place between attention and MLP, so the halves call a block's own
submodules. Blocks that do not merge run timm's `forward` untouched.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from model.vit.attention import Attended, Reading

Rotary = Float[Tensor, "layers #batch heads tokens angles"] | None
"""Sine and cosine of every patch token's position, timm's layout; one layer or head where all share them. None
without a rotary position embedding."""


@runtime_checkable
class Family(Protocol):
    """Adapter of one family. Without state: the timm model stays the only owner of everything."""

    blocks: str
    """What `splits` takes, in words."""

    def splits(self, block: nn.Module) -> bool:
        """Whether the halves of this block can be called apart."""

    def has_class_token(self, vit: Any) -> bool:
        """Whether the first token is a class token."""

    def pools_prefix(self, vit: Any) -> bool:
        """Whether the pooling of the head reads the prefix tokens too."""

    def embed(
        self, vit: Any, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch all_tokens dim"], Rotary]:
        """Tokens that enter the first block, and the rotary embedding of the patch tokens."""

    def whole(self, block: Any, tokens: Tensor, rotary: Tensor | None, bias: Tensor | None) -> Tensor:
        """timm's own block."""

    def attention_half(
        self, block: Any, tokens: Tensor, rotary: Tensor | None, bias: Tensor | None, reading: Reading
    ) -> Attended:
        """The block up to and including its first residual sum."""

    def mlp_half(self, block: Any, tokens: Tensor) -> Tensor:
        """The rest of the block: MLP and second residual sum."""
