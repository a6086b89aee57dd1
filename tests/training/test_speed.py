import pytest
import torch

from training import speed
from training.measure import records
from training.run import arithmetic

WORDS = (
    "--batch_size 4 --repeats 3 --device cpu --image_size 32 --backbone vit_tiny_patch16_224 "
    "--backbone_args patch_size=8 embed_dim=48 depth=2 num_heads=3 --merge_layers 1"
)


@pytest.mark.parametrize("there", [False, True])
def test_training_is_timed_in_what_the_processor_has_and_recorded(monkeypatch, tmp_path, capsys, there):
    monkeypatch.setattr(arithmetic, "has_bf16", lambda: there)
    speed.main([*WORDS.split(), "--output_dir", str(tmp_path)])
    told, read = capsys.readouterr().out, records.read("speed", tmp_path / "results")
    kinds = ["float32, fused attention", "float32, explicit attention"]
    kinds += ["bfloat16, fused attention", "bfloat16, explicit attention"] if there else []
    assert [one["arithmetic"] for one in read] == kinds
    assert [one["bfloat16"] for one in read] == [there] * len(kinds)
    assert read[0]["speed_up"] == 1
    for one in read:
        assert one["images_per_s_quartiles"][0] <= one["images_per_s"] <= one["images_per_s_quartiles"][1]
        assert f"{one['arithmetic']:<28}{one['images_per_s']:8.1f} images/s" in told
    assert ("bfloat16 was not timed: this hardware has no arithmetic for it" in told) is not there


def test_a_timed_step_moves_the_weights(tiny_model):
    config = speed.StepConfig(batch_size=4, device="cpu")
    step = speed._step(speed.combinations(torch.device("cpu"))[0], config, tiny_model, torch.device("cpu"))
    losses = [float(step()) for _ in range(20)]
    assert losses[-1] < losses[0]
