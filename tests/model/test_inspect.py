import re
import sys

import pytest
import torch

from model import build, save_checkpoint
from model.inspect import main
from tests.model.tiny import TINY

FEW = ["--batch_size", "2", "--repeats", "2", "--warm_up", "1", "--device", "cpu"]


def printed(capsys, *arguments):
    main([*arguments, *FEW])
    return capsys.readouterr().out


def test_a_timm_name_gives_schedule_macs_parameters_and_speed_up(capsys):
    out = printed(capsys, "vit_tiny_patch16_224", "--img_size", "96", "--alpha", "0")
    assert "12 blocks, 6x6 patches of 16x16 pixels, prefix tokens: 1\n" in out
    assert "merging: blocks 4 6 8 10, keep rate 0.7, alpha 0, scoring lfgm\n" in out
    assert "patch tokens after each block: 36 36 36 36 25 25 18 18 13 13 9 9\n" in out
    plain, merged, fewer = map(float, re.search(r"GMACs per image +(\S+) +(\S+) +(\S+)x fewer", out).groups())
    assert plain / merged == pytest.approx(fewer, rel=0.02)
    assert re.search(r"parameters +5\.69 M +5\.69 M   shared\n", out)
    assert re.search(r"images/s, batch 2 +\S+ +\S+ +\d+\.\d\dx speed-up\n", out)
    assert f"{torch.get_num_threads()} threads on " in out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--r", "2", "--inflect", "-1"], "counts 4 3 3 2 2 2 1 1 1, alpha 0.7"),
        (["--r", "9", "4"], "merging: blocks 0 1, counts 9 4, alpha 0.7"),
        (["--merge_layers", "3", "--keep_rate", "0.5"], "merging: blocks 3, keep rate 0.5, alpha 0.7"),
        (["--keep_rate", "1"], "merging: none"),
    ],
)
def test_flags_are_merge_tokens_arguments(capsys, flags, told):
    assert told in printed(capsys, "eva02_tiny_patch14_224", "--img_size", "84", *flags)


def test_a_model_with_a_dynamic_size_is_inspected_with_that_turned_off(capsys):
    flags = ["--img_size", "96", "--backbone_args", "dynamic_img_size=false", "depth=2"]
    out = printed(capsys, "vit_small_patch16_dinov3", *flags)
    assert "vit_small_patch16_dinov3: Eva, 2 blocks, 6x6 patches of 16x16 pixels, prefix tokens: 5\n" in out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "merging: blocks 1 2, counts 5 3, alpha 0.4, scoring none"),
        (["--keep_rate", "0.8"], "merging: blocks 1 2, keep rate 0.8, alpha 0.4, scoring none"),
        (["--merge_layers", "3"], "merging: blocks 3, keep rate 0.7, alpha 0.4, scoring none"),
        (["--r", "2"], "merging: blocks 0 1 2 3, counts 2 2 2 2, alpha 0.4, scoring none"),
    ],
)
def test_a_checkpoint_merges_as_it_says_where_no_flag_does(tmp_path, capsys, flags, told):
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, build(TINY.replace(merge_counts=(5, 3), alpha=0.4, scoring="none")))
    assert told in printed(capsys, str(path), *flags)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["vit_smal_patch16_224"],
            "expected a timm model name, found 'vit_smal_patch16_224'; close names: vit_small_p",
        ),
        (["missing.safetensors"], "missing.safetensors: expected a checkpoint file"),
        (["swin_tiny_patch4_window7_224"], "found SwinTransformer, which attends within windows"),
        (["vit_tiny_patch16_224", "--r", "8", "--keep_rate", "0.7"], "expected r alone, found keep_rate as well"),
        (["vit_tiny_patch16_224", "--inflect", "1"], "inflect: expected together with r"),
        (["vit_tiny_patch16_224", "--inflect", "1", "--r", "2", "3"], "inflect: expected with one count r, found 2"),
        (["vit_small_patch16_dinov3"], "found dynamic_img_size=True; build it with an img_size and dynamic_img_size=F"),
        (["vit_tiny_patch16_224", "--device", "abacus"], "device: expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_be_inspected_is_one_line_of_error(capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_module_named_inspect_hides_nothing():
    assert sys.modules["inspect"].__name__ == "inspect"
