"""What TF32 would do on a GPU, simulated: why the engines switch it off."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import load_checkpoint
from model.engines.classifier import classifier_of
from model.merging.matching import follow
from tests.model.sample_parts import crops
from tests.support.paths import MINI

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}


def cut(x):
    """The float32 numbers with 10 bits of mantissa, as TF32 takes them."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        return x
    bits = x.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class TF32(TorchDispatchMode):
    """Every product takes its factors in TF32 and sums in float32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            args = tuple(cut(part) for part in args)
        return func(*args, **(kwargs or {}))


def source_maps(simulated):
    classifier = classifier_of(load_checkpoint(MINI))
    images = torch.from_numpy(crops(classifier.input_stage.native_size))
    with torch.no_grad():  # in inference mode products arrive whole, as linear and matmul
        if not simulated:
            return classifier(images).source_maps
        with TF32():
            return classifier(images).source_maps


def test_tf32_turns_merges_of_a_float32_model_in_some_pictures():
    exact, rounded = source_maps(False), source_maps(True)
    turned = (exact != rounded).flatten(1).any(dim=1)
    assert len(turned) == 80
    assert 4 <= int(turned.sum()) <= 40  # 21 where this was written


@pytest.mark.parametrize(("tokens", "kept"), [(2048, True), (4096, False)])
def test_indices_survive_a_product_in_tf32_up_to_2048_tokens_only(tokens, kept):
    row = torch.arange(tokens)[None]
    assert torch.equal(follow(row, row), row)
    with TF32():
        assert torch.equal(follow(row, row), row) is kept
