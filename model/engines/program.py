"""The classifier as one exported program with a dynamic batch, which every compiler starts from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from model.engines.classifier import Classifier
from model.engines.engine import MAX_BATCH_SIZE

INPUTS = ("images",)
OUTPUTS = ("logits", "frequency_scores", "source_maps")
"""Names of what goes in and comes out, in order."""


class _Plain(nn.Module):
    """The classifier with a plain tuple as its answer."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, images: UInt8[Tensor, "batch 3 native native"]
    ) -> tuple[
        Float[Tensor, "batch classes"],
        Float[Tensor, "batch scores patches"],
        Int[Tensor, "batch merging_blocks patches"],
    ]:
        output = self.classifier(images)
        return output.logits, output.frequency_scores, output.source_maps


def exported(
    classifier: Classifier, max_batch_size: int = MAX_BATCH_SIZE, form: Callable[[Classifier], nn.Module] = _Plain
) -> ExportedProgram:
    """The whole graph for 1..max_batch_size images, on the classifier's device.

    `form` makes of the classifier the module whose `forward(images)` is exported: what comes out, and in which order.
    torch.export never falls back to Python: what it cannot trace, or what would fix the batch size, raises.
    """
    side = classifier.input_stage.native_size
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8, device=classifier.model.basis.device)
    with torch.inference_mode(False), torch.no_grad():
        return torch.export.export(
            form(classifier),
            (example,),
            dynamic_shapes={"images": {0: Dim("batch", min=1, max=max_batch_size)}},
            strict=False,
        )
