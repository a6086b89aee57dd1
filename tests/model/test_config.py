import pytest

from model import ModelConfig
from model.errors import ConfigError


def test_the_defaults_are_the_seeds():
    config = ModelConfig()
    assert (config.backbone, config.image_size) == ("vit_small_patch16_224", 224)
    assert (config.merge_layers, config.keep_rate, config.alpha, config.hpf_radius) == (
        (4, 6, 8, 10),
        0.7,
        0.7,
        2,
    )


def test_json_gives_the_same_config_back():
    config = ModelConfig(
        backbone_args={"depth": 8, "init_values": 0.1, "qk_norm": True},
        merge_layers=(0, 3),
        merge_counts=(40, 0),
        alpha=0.25,
    )
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("keep_rate", 1.5, "keep_rate: expected 0.5 to 1, found 1.5"),
        ("keep_rate", 0.4, "keep_rate: expected 0.5 to 1, found 0.4"),
        ("alpha", -0.1, "alpha: expected 0 to 1, found -0.1"),
        ("alpha", float("nan"), "alpha: expected a finite number, found nan"),
        ("hpf_radius", -1, "hpf_radius: expected greater than or equal to 0, found -1"),
        ("merge_layers", (6, 4), "merge_layers: expected ascending block indices"),
        ("merge_layers", (), "merge_layers: "),
        (
            "scoring",
            "magic",
            "scoring: expected 'lfgm', 'none', 'attention', 'random', 'tomecis', 'evit', 'pitome', 'tofu', "
            "'stream_detail', 'normalised_detail', 'feature_detail', 'pixel_detail', 'detail_weighted', "
            "'random_merge', 'shuffled', 'inverted' or 'sobel', found 'magic'",
        ),
        ("merge_counts", (13,), "merge_counts: expected none or one count for each of the 4 merge_layers, found (13,)"),
        ("merge_counts", (9, 9, -1, 9), "merge_counts: expected counts of at least 0, found (9, 9, -1, 9)"),
        ("cosine", "absolute", "cosine: expected 'signed' or 'clamped', found 'absolute'"),
        ("keep_rat", 0.5, "keep_rat: unknown field of ModelConfig; known are backbone, "),
    ],
)
def test_a_bad_value_is_refused_with_its_field_range_and_value(field, value, words):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**{field: value})
    assert words in str(caught.value)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        ModelConfig().alpha = 0.1


def test_a_config_merges_where_both_its_keep_rate_and_its_counts_say_so():
    counts = ModelConfig(merge_layers=(0, 1), merge_counts=(0, 3))
    assert counts.merges is True
    assert counts.replace(keep_rate=1.0).merges is False
    assert counts.replace(merge_counts=(0, 0)).merges is False


def test_other_layers_need_other_counts():
    counts = ModelConfig(merge_counts=(9, 9, 9, 9))
    with pytest.raises(ConfigError, match="merge_counts: expected none or one count for each of the 1 merge_layers"):
        counts.replace(merge_layers=(4,))
    assert counts.replace(merge_layers=(4,), merge_counts=()).merge_counts == ()


def test_replacing_a_field_validates_again():
    assert ModelConfig().replace(keep_rate=1.0).merges is False
    with pytest.raises(ConfigError, match="keep_rate"):
        ModelConfig().replace(keep_rate=2)
