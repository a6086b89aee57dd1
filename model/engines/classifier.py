"""The whole graph of one model, from raw uint8 images to plain answers, and its numeric precision."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from model.checkpoint import Checkpoint
from model.engines.engine import Precision
from model.images.input_stage import InputStage
from model.vit.merging_vit import FreqMergeOutput, FreqMergeViT

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NAMES: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Classifier(nn.Module):
    """The whole graph: uint8 at the native size in, logits, scores and source maps out."""

    def __init__(self, model: FreqMergeViT, input_stage: InputStage) -> None:
        super().__init__()
        self.input_stage = input_stage
        self.model = model

    @property
    def precision(self) -> Precision:
        """The precision of the backbone."""
        return _NAMES[next(self.model.vit.parameters()).dtype]

    def forward(self, images: UInt8[Tensor, "batch 3 native native"]) -> FreqMergeOutput:
        """Answer of the model for raw images, its logits in float32."""
        # TensorRT casts uint8 to float32 and to half, not to bfloat16; and 3 channels cost nothing in float32
        pixels = self.input_stage(images).to(next(self.model.vit.parameters()).dtype)
        output: FreqMergeOutput = self.model(pixels)
        # made anew, not _replace, which torch 2.11 cannot compile as the end of a graph
        return FreqMergeOutput(output.logits.float(), output.frequency_scores, output.source_maps, output.trace)


def classifier_of(checkpoint: Checkpoint, precision: Precision = "fp32") -> Classifier:
    """The checkpoint's model behind its input stage, in evaluation mode; changes the checkpoint's model.

    Only the backbone takes the precision. Its input stage, the frequency scores, the cosine of the matching and the
    log of the token sizes are float32 whatever it is.
    """
    model = checkpoint.model
    model.vit.to(DTYPES[precision])
    return Classifier(model, InputStage(checkpoint.manifest.preprocess, model.config.image_size)).eval()
