import pytest

from model import ModelConfig
from training import cli
from training.config import TrainConfig


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


@pytest.mark.parametrize("line", ["--backbone_args depth", "--epochs many", "--lear 1"])
def test_words_that_are_no_flags_or_values_are_refused(line, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(line)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err
