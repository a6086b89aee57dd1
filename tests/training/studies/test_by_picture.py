import numpy as np
import pytest

from model import ModelConfig
from model.merging.strategies import STRATEGIES
from training import by_picture, cli, tables
from training.by_picture import ByPictureConfig
from training.measure import records
from training.measure.bench import Bench, Cost
from training.measure.picture_statistics import ENERGIES, FIRST_BLOCK, STATISTICS
from training.studies import divisions, picture_report
from training.studies.divisions import OPPOSITE, ORACLE, RANDOM, SCHEDULE, Scored


@pytest.fixture
def config(trained, data_dir, tmp_path):
    return ByPictureConfig(ckpt=trained, data_dir=data_dir, output_dir=tmp_path, device="cpu", batch_size=30, seeds=3)


@pytest.fixture(scope="module")
def measured(trained, data_dir, tmp_path_factory):
    """The study run once, with two strategies, and the folder that holds what it left."""
    folder = tmp_path_factory.mktemp("by_picture")
    config = ByPictureConfig(
        ckpt=trained,
        data_dir=data_dir,
        output_dir=folder,
        device="cpu",
        batch_size=30,
        seeds=3,
        strategies=("none", "lfgm"),
    )
    return by_picture.measure(config, {}, "the command"), folder


def test_every_schedule_is_scored_once_and_stands_before_the_mixes(measured, config):
    entries, _ = measured
    rows = [entry for entry in entries if entry["strategy"] == "none"]
    assert [entry["keep_rates"] for entry in rows[:4]] == [[0.5], [0.6], [0.7], [0.85]]
    assert {entry["row"] for entry in rows[:4]} == {SCHEDULE}
    assert rows[0]["macs"] < rows[1]["macs"] < rows[2]["macs"] < rows[3]["macs"]
    bench = Bench(config)
    own = bench.checkpoint.model.config.replace(scoring="none", keep_rate=0.6)
    assert rows[1]["macs"] == bench.cost(own).macs
    right = bench.logits(own).argmax(dim=1) == bench.images.labels
    assert rows[1]["top1"] == pytest.approx(right.double().mean().item())


def test_every_mix_has_every_choice_and_costs_what_one_schedule_costs(measured):
    entries, _ = measured
    choices = {RANDOM, *STATISTICS, *(f"{OPPOSITE}{name}" for name in ENERGIES), ORACLE}
    for strategy in ("none", "lfgm"):
        rows = [entry for entry in entries if entry["strategy"] == strategy]
        macs = {row["mean_rate"]: row["macs"] for row in rows if row["row"] == SCHEDULE}
        mixes = {(row["mean_rate"], *row["keep_rates"]) for row in rows if row["row"] != SCHEDULE}
        every = (0.5, 0.6, 0.7, 0.85)
        assert mixes == {(0.6, 0.5, 0.7), (0.6, *every), (0.7, 0.6, 0.85), (0.7, *every)}
        for mix in mixes:
            own = [row for row in rows if row["row"] != SCHEDULE and (row["mean_rate"], *row["keep_rates"]) == mix]
            assert {row["row"] for row in own} == choices
            for row in own:
                assert sum(row["pictures"]) == 100
                if row["row"] == ORACLE:
                    assert row["macs"] <= macs[mix[0]]
                    assert row["top1"] >= max(other["top1"] for other in own)
                else:
                    assert row["macs"] == pytest.approx(macs[mix[0]], rel=0.005)


def test_the_answers_of_every_image_are_kept_and_give_the_rows(measured):
    entries, folder = measured
    kept = np.load(folder / "logs" / "by_picture.npz")
    assert kept["keep_rates"].tolist() == [0.5, 0.6, 0.7, 0.85]
    right = kept["right_none"]
    assert right.shape == (4, 100)
    row = next(e for e in entries if e["row"] == "energy" and e["keep_rates"] == [0.6, 0.85])
    dear = row["pictures"][1]
    order = np.argsort(kept["energy"], kind="stable")
    expected = right[1, order[: 100 - dear]].sum() + right[3, order[100 - dear :]].sum()
    assert row["top1"] == pytest.approx(expected / 100)
    assert row["against"][SCHEDULE]["difference"] == pytest.approx(row["top1"] - right[2].mean())


def test_random_choices_are_drawn_by_seed_and_a_single_choice_meets_every_draw(measured):
    entries, _ = measured
    drawn = next(entry for entry in entries if entry["row"] == RANDOM)
    assert len(drawn["top1_per_seed"]) == 3
    assert drawn["top1"] == pytest.approx(sum(drawn["top1_per_seed"]) / 3)
    assert set(drawn["against"]) == {SCHEDULE}
    for row in entries:
        if row["row"] in ENERGIES:
            assert set(row["against"]) == {SCHEDULE, RANDOM, *FIRST_BLOCK}


def test_the_records_make_the_table_of_the_page(measured):
    _, folder = measured
    kept = records.read("by_picture", folder / "results")
    assert {(entry["checkpoint"], entry["images"], entry["study"]) for entry in kept} == {
        (kept[0]["checkpoint"], 100, "by_picture")
    }
    page = tables.fill("<!-- table: by_picture -->\n<!-- end -->\n", folder / "results")
    assert "| ToMe, same blocks, 0.7 (100%) | one schedule for all |" in page
    assert "| the opposite: energy of all channels |" in page
    assert "oracle: the answers known" in page
    assert "Only 100 of 10,000 test images: a trial, not a result." in page
    assert "`the command`, checkpoint" in page
    assert page.count("tested against a choice at random at the same mean cost (Holm-corrected, 5 %)") == 2
    assert "ToMe, same blocks: of 24 choices" in (folder / "logs" / "by_picture.md").read_text()


def test_without_records_the_table_says_that_it_was_not_run(tmp_path):
    page = "<!-- table: by_picture -->\n<!-- end -->\n"
    assert tables.fill(page, tmp_path) == "<!-- table: by_picture -->\nnot run\n<!-- end -->\n"


def test_thresholds_may_come_from_training_images_drawn_by_a_fixed_seed(config):
    changed = config.replace(thresholds_from="train", threshold_images=80, keep_rates=(0.85, 0.7, 0.5))
    first, again = (by_picture.measure(changed, {}, "the command") for _ in range(2))
    assert first == again
    assert {entry["thresholds_from"] for entry in first} == {"train"}
    pictures = {entry["row"]: entry["pictures"] for entry in first if entry["keep_rates"] == [0.5, 0.85]}
    assert pictures["energy"] != pictures[RANDOM], "no 80 training images split 100 others exactly as ranks do"
    assert sum(pictures["energy"]) == 100


def test_what_comes_before_the_first_merging_block_is_computed_once_for_statistics_and_schedules(config):
    bench = Bench(config)
    embedded = []
    bench.vit.patch_embed.register_forward_hook(lambda *_: embedded.append(1))
    own = bench.checkpoint.model.config
    bench.read(own, lambda model, images, stem: stem.tokens[:, 0, :1])
    bench.logits(own)
    bench.logits(own.replace(keep_rate=0.5, scoring="none"))
    assert len(embedded) == 4, "batches of 100 images"


def scored(right):
    costs = tuple(Cost(macs, 1, 16, (16, 16)) for macs in (10, 20, 30))
    configs = tuple(ModelConfig(scoring="none", keep_rate=rate) for rate in (0.5, 0.6, 0.7))
    return Scored("none", configs, costs, np.asarray(right, bool))


def test_a_statistic_that_tells_who_needs_tokens_is_found_better_and_its_opposite_worse():
    hard = np.arange(1000) % 2 == 1
    right = [~hard, ~hard, np.ones(1000)]
    noise = np.random.default_rng(0)
    seen = {name: noise.random(1000) for name in STATISTICS} | {"energy": hard + noise.random(1000)}
    rows = divisions.divide(scored(right), seen, None, seeds=2)
    told = {"thresholds_from": "test", "images": 1000}
    entries = [told | row for row in rows]
    pair = {row["row"]: row for row in entries if row["keep_rates"] == [0.5, 0.7]}
    assert pair["energy"]["top1"] == 1.0
    assert pair[f"{OPPOSITE}energy"]["top1"] == 0.5
    assert pair[RANDOM]["top1"] == pytest.approx(0.75, abs=0.03)
    assert pair[ORACLE]["top1"] == 1.0
    label = STRATEGIES["none"].label
    random, one, first_block, reach, cost, *_ = picture_report.findings(entries)
    assert random.startswith(f"{label}: of 12 choices tested against a choice at random")
    assert "better: energy of all channels, keep rates 0.5 0.7 for 0.6 (+2" in random
    assert "No energy beats" not in random
    assert "worse: energy of the channel mean" not in random
    assert "energy of all channels, keep rates 0.5 0.7 for 0.6 (+50.00 points)" in one.partition("worse")[0]
    assert "energy of all channels against block 0: norm of the tokens, keep rates 0.5 0.7 for 0.6" in first_block
    assert reach.endswith("would be +50.00 to +50.00 points.")
    assert "is that of the one schedule within 0.0" in cost


def test_where_no_energy_beats_chance_the_findings_say_so():
    right = np.random.default_rng(0).random((3, 400)) < 0.8
    seen = {name: np.random.default_rng(place).random(400) for place, name in enumerate(STATISTICS)}
    rows = [{"thresholds_from": "test", "images": 400} | row for row in divisions.divide(scored(right), seen, None, 2)]
    random, one, *_ = picture_report.findings(rows)
    assert "better: none, worse: none; 12 without a difference that these images can show." in random
    assert random.endswith("No energy beats a choice at random at the same mean cost.")
    assert one.endswith("No energy beats one schedule for all at the same cost.")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--keep_rates 0.7 0.5", "keep_rates: expected at least three different rates"),
        ("--keep_rates 0.7 0.6 0.6 0.5", "keep_rates: expected at least three different rates"),
        ("--keep_rates 0.7 0.6 0.3", "found 0.3"),
        ("--keep_rates 0.7 0.699 0.698", "budget: expected a mean cost between"),
        ("--strategies magic", "strategies.0: expected 'lfgm', 'none',"),
        ("--merge_layers 0 1", "merge_layers: expected blocks from 1 on, found 0"),
        ("--keep_rate 0.7", "unrecognized arguments: --keep_rate"),
        ("--ckpt nowhere", "expected a checkpoint file"),
    ],
)
def test_a_bad_flag_ends_with_one_clear_line_and_code_two(flags, said, trained, data_dir, tmp_path, capsys):
    words = f"--ckpt {trained} --data_dir {data_dir} --output_dir {tmp_path} {flags}".split()
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: by_picture.main(words))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_measures_prints_the_table_and_records(trained, data_dir, tmp_path, capsys):
    words = f"--ckpt {trained} --data_dir {data_dir} --output_dir {tmp_path} --images 60 --keep_rates 0.85 0.7 0.5"
    by_picture.main(words.split())
    printed = capsys.readouterr()
    assert "by_picture: ToMe, same blocks, keep rate 0.5: top-1" in printed.err
    assert "| ToMe, same blocks, 0.5 (100%) | one schedule for all |" in printed.out
    assert f"recorded: {tmp_path / 'results' / 'by_picture.jsonl'}" in printed.out
    kept = records.read("by_picture", tmp_path / "results")
    assert kept[0]["command"].startswith("python -m training.by_picture --ckpt ")
    assert kept[0]["images"] == 60
