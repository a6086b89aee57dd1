import torch

from model.vit.attention import _weights


def test_attention_that_is_read_in_half_precision_does_not_overflow_before_it_is_scaled():
    query = torch.full((1, 1, 3, 64), 40.0, dtype=torch.float16)
    key = torch.full((1, 1, 3, 64), 40.0, dtype=torch.float16)  # a product of 102,400, above float16's 65,504
    assert torch.isinf(query @ key.transpose(2, 3)).all()
    torch.testing.assert_close(_weights(query, key, 64**-0.5, None), torch.full((1, 1, 3, 3), 1 / 3))
