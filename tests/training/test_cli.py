import re

import pytest

from model import ModelConfig
from model.errors import ConfigError
from training import cli
from training.budget import CountConfig
from training.config import TrainConfig
from training.dynamicvit.command import MeasureConfig
from training.evaluate import EvaluateConfig
from training.loader import SpeedConfig
from training.release import ReleaseConfig
from training.timing import TimingConfig


def parsed(line):
    words = line.split()
    found = cli.parser("train", "Train.", TrainConfig, ModelConfig).parse_args(words)
    return TrainConfig(**cli.given(TrainConfig, found)), ModelConfig(**cli.given(ModelConfig, found))


def test_without_flags_every_default_is_the_configs_own():
    assert parsed("") == (TrainConfig(), ModelConfig())


def test_the_seeds_flags_are_read():
    train, model = parsed(
        "--alpha 0.6 --keep_rate 0.8 --merge_layers 3 5 7 --hpf_radius 1 --epochs 30 --batch_size 64 --lr 1e-4 "
        "--weight_decay 0.05 --no_freqmerge --no_amp"
    )
    assert (model.alpha, model.keep_rate, model.merge_layers, model.hpf_radius) == (0.6, 0.8, (3, 5, 7), 1)
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay) == (30, 64, 1e-4, 0.05)
    assert (train.freqmerge, train.amp) == (False, False)


def test_backbone_arguments_keep_their_types():
    _, model = parsed("--backbone_args depth=8 init_values=0.1 qk_norm=true global_pool=avg")
    assert model.backbone_args == {"depth": 8, "init_values": 0.1, "qk_norm": True, "global_pool": "avg"}


def test_help_shows_every_field_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    for record in (TrainConfig, ModelConfig):
        for name, field in record.model_fields.items():
            assert f"--{name}" in text
            assert field.description.split("(")[0].strip() in text
    assert "blocks that merge (default: 4 6 8 10)" in text
    assert "empty: by keep_rate (default: none)" in text
    assert "or its decisions (Touvron et al., 2021) (one of soft, hard; default: soft)" in text
    assert "(one of lfgm, none, attention, random, tomecis, evit, pitome, tofu, " in text
    assert "--amp, --no_amp mixed precision, on CUDA and on CPUs that have bfloat16; --no_amp computes" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--backbone_args depth", "argument --backbone_args: expected KEY=VALUE, found 'depth'"),
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--lear 1", "unrecognized arguments: --lear 1"),
    ],
)
def test_words_that_are_no_flags_or_values_are_refused_in_one_line(line, said, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(line)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {said}; --help lists the flags\n"


def test_a_flag_without_a_default_is_needed_and_said_to_be_required(capsys):
    parser = cli.parser("release", "Release.", ReleaseConfig)
    with pytest.raises(ConfigError, match="--out is needed: safetensors file .*; --name is needed: name of the relea"):
        cli.given(ReleaseConfig, parser.parse_args([]))
    assert "name of the released model (required)" in " ".join(parser.format_help().split())


@pytest.mark.parametrize(
    ("record", "values", "said"),
    [
        (TimingConfig, {"batch_sizes": (8, 0)}, "batch_sizes.1: expected greater than 0, found 0"),
        (EvaluateConfig, {"batch_sizes": (0,)}, "batch_sizes.0: expected greater than 0, found 0"),
        (MeasureConfig, {"batch_sizes": (0,)}, "batch_sizes.0: expected greater than 0, found 0"),
        (CountConfig, {"tome_counts": (0,)}, "tome_counts.0: expected greater than 0, found 0"),
        (CountConfig, {"rhos": (3.0,)}, "rhos.0: expected less than or equal to 1, found 3.0"),
        (SpeedConfig, {"seconds": -1.0}, "seconds: expected greater than 0, found -1.0"),
    ],
)
def test_a_number_that_nothing_can_be_measured_with_is_refused(record, values, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        record(**values)


def test_an_interrupted_command_says_why_it_stopped_and_ends_with_code_130(capsys):
    def stopped():
        raise KeyboardInterrupt("the state is kept")

    with pytest.raises(SystemExit) as ended:
        cli.run(stopped)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted: the state is kept\n"
