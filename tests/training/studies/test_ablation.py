import json

import pytest
import torch

from model import ModelConfig, build, load_checkpoint
from model.merging.strategies import STRATEGIES, of_role
from tests.support import forked
from training import ablation, budget, cli, tables
from training.errors import BudgetError
from training.measure import fitting, records
from training.studies import claims, plan, reports, verdicts
from training.studies.plan import AblationConfig


@pytest.fixture
def config(trained, data_dir, tmp_path):
    return AblationConfig(
        ckpt=trained,
        data_dir=data_dir,
        output_dir=tmp_path,
        device="cpu",
        tolerance=0.2,  # 16 patches are coarse
        budgets=(0.8,),
        seeds=2,
        repeats=3,
        warm_up=1,
        timing_batch=2,
    )


def small(**changes):
    return ModelConfig(
        backbone="vit_tiny_patch16_224",
        backbone_args={"patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 3},
        image_size=32,
        merge_layers=(1, 3),
    ).replace(**changes)


@pytest.fixture(scope="module")
def vit():
    return build(small()).eval().vit


def test_tome_in_every_block_reaches_budgets_at_which_its_last_blocks_have_no_more_to_merge(vit):
    whole = fitting.cost(vit, small(keep_rate=1.0))
    found = fitting.fit_counts(vit, small(scoring="none"), round(0.4 * whole), tolerance=0.02)
    assert sum(found.config.merge_counts) > 64
    assert found.macs == pytest.approx(0.4 * whole, rel=0.02)


@pytest.mark.parametrize("share", [0.95, 0.8, 0.7])
@pytest.mark.parametrize("fit", [fitting.fit_keep_rate, fitting.fit_counts])
def test_a_fitted_schedule_costs_what_was_asked_for(vit, fit, share):
    whole = fitting.cost(vit, small(keep_rate=1.0))
    found = fit(vit, small(), round(share * whole))
    assert found.macs == fitting.cost(vit, found.config)
    assert found.macs == pytest.approx(share * whole, rel=0.01)


def test_the_counts_of_tome_at_its_best_differ_by_one_at_most_and_use_every_block(vit):
    whole = fitting.cost(vit, small(keep_rate=1.0))
    config = fitting.fit_counts(vit, small(scoring="none"), round(0.7 * whole)).config
    assert config.merge_layers == (0, 1, 2, 3, 4, 5)
    assert max(config.merge_counts) - min(config.merge_counts) <= 1


def test_no_fitted_keep_rate_is_nearer_to_the_budget_than_the_one_found(vit):
    wanted = round(0.77 * fitting.cost(vit, small(keep_rate=1.0)))
    found = fitting.fit_keep_rate(vit, small(), wanted)
    every = [fitting.cost(vit, small(keep_rate=rate / 100)) for rate in range(50, 100, 5)]
    assert abs(found.macs - wanted) <= min(abs(macs - wanted) for macs in every)


def test_a_budget_that_no_schedule_reaches_is_refused_with_the_nearest(vit):
    whole = fitting.cost(vit, small(keep_rate=1.0))
    with pytest.raises(BudgetError, match="the nearest that vit_tiny_patch16_224 reaches in this way is"):
        fitting.fit_keep_rate(vit, small(merge_layers=(5,)), whole // 2)


def test_every_strategy_of_the_registry_has_a_name_for_people():
    assert all(strategy.label for strategy in STRATEGIES.values())
    assert len({strategy.label for strategy in STRATEGIES.values()}) == len(STRATEGIES)


def test_the_alpha_study_tests_every_alpha_against_none_on_the_same_images(config):
    (entries,) = ablation.ablate(config.replace(study="alpha", alphas=(0.0, 0.7)), {}, "the command").values()
    by_row = {entry["row"]: entry for entry in entries}
    assert list(by_row) == ["plain", "alpha=0", "alpha=0.7"]
    found = by_row["alpha=0.7"]["against"]["alpha=0"]
    assert found["difference"] == pytest.approx(by_row["alpha=0.7"]["top1"] - by_row["alpha=0"]["top1"])
    assert found["wins"] - found["losses"] == pytest.approx(100 * found["difference"])
    assert by_row["alpha=0"]["macs"] < by_row["plain"]["macs"]
    assert by_row["plain"]["speed_up"] == 1.0
    model = load_checkpoint(config.ckpt).model
    assert by_row["alpha=0.7"]["schedule"] == model.schedule
    assert records.read("ablation_alpha", config.results)[2]["config"]["alpha"] == 0.7
    table = (config.output_dir / "logs" / "ablation_alpha.md").read_text()
    assert "| FreqMerge, α = 0.7 | 16 → 11 |" in table
    assert (config.output_dir / "visualizations" / "ablation_alpha.png").stat().st_size > 5000


def test_random_strategies_are_drawn_with_several_seeds_and_others_once(config):
    chosen = config.replace(study="scoring", strategies=("random", "attention"), timing_batch=0)
    (entries,) = ablation.ablate(chosen, {"keep_rate": 0.5}, "the command").values()
    by_row = {entry["row"]: entry for entry in entries}
    assert list(by_row) == ["plain", "none", "lfgm", "random", "attention", "tome_best", "lfgm_everywhere"]
    assert by_row["random"]["seeds"] == [0, 1]
    assert by_row["random"]["top1"] == pytest.approx(sum(by_row["random"]["top1_per_seed"]) / 2)
    assert by_row["attention"]["seeds"] == [0]
    assert set(by_row["lfgm"]["against"]) == {"none", "tome_best"}
    assert by_row["tome_best"]["config"]["merge_counts"]
    assert "images_per_s" not in by_row["lfgm"]


def test_the_same_seed_draws_the_same_tokens(config):
    bench = ablation.Bench(config)
    random = bench.checkpoint.model.config.replace(scoring="random", keep_rate=0.5)
    first, again, other = (bench.logits(random, seed) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("scoring", ["lfgm", "none", "attention", "random", "pixel_detail"])
@pytest.mark.parametrize("changes", [{"keep_rate": 0.5}, {"keep_rate": 1.0}, {"merge_layers": (2,), "keep_rate": 0.5}])
def test_what_comes_before_the_first_merging_block_is_computed_once_and_changes_no_answer(config, scoring, changes):
    shared, alone = (ablation.Bench(config.replace(batch_size=30, stem_gib=gib)) for gib in (6, 0))
    merging = shared.checkpoint.model.config.replace(scoring=scoring, **changes)
    embedded = []
    shared.vit.patch_embed.register_forward_hook(lambda *_: embedded.append(1))
    expected = alone.logits(merging)
    assert all(torch.equal(shared.logits(merging), expected) for _ in range(2))
    assert len(embedded) == 4, "batches of 100 images"


def test_memory_for_shared_tokens_is_bounded(config):
    bench = ablation.Bench(config.replace(batch_size=30, stem_gib=2 * 30 * 17 * 48 * 4 / 2**30))  # of two batches
    embedded = []
    bench.vit.patch_embed.register_forward_hook(lambda *_: embedded.append(1))
    for _ in range(2):
        bench.logits(bench.checkpoint.model.config)
    assert len(embedded) == 4 + 2


def test_a_study_that_runs_again_takes_the_answers_that_were_kept_and_records_the_same(config, tmp_path, monkeypatch):
    chosen = config.replace(study="alpha", timing_batch=0, answers_dir=tmp_path / "answers")
    (first,) = ablation.ablate(chosen, {}, "the command").values()
    monkeypatch.setattr(ablation.Bench, "_measured", lambda *_: pytest.fail("measured again"))
    (again,) = ablation.ablate(chosen, {}, "the command").values()
    assert again == first
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        ablation.ablate(chosen.replace(images=50), {}, "the command")


def test_at_a_budget_every_method_costs_the_same(config):
    chosen = config.replace(study="budget", strategies=("random", "tofu"), timing_batch=0, tolerance=0.08)
    (entries,) = ablation.ablate(chosen, {}, "the command").values()
    plain = entries[0]["macs"]
    fitted = [entry for entry in entries if entry["budget"] == 0.8]
    assert [entry["row"].partition("/")[2] for entry in fitted] == [
        "none",
        "lfgm",
        "random",
        "tofu",
        "tome_best",
        "lfgm_everywhere",
    ]
    assert all(entry["macs"] == pytest.approx(0.8 * plain, rel=0.08) for entry in fitted if "macs" in entry)
    assert any("macs" in entry for entry in fitted)
    assert set(fitted[1]["against"]) <= {"0.8/none", "0.8/tome_best"}


def test_a_budget_out_of_reach_is_a_row_that_says_so(config):
    chosen = config.replace(study="budget", strategies=("lfgm",), budgets=(0.3,), timing_batch=0, tolerance=0.01)
    (entries,) = ablation.ablate(chosen, {}, "the command").values()
    missed = [entry for entry in entries if "unreachable" in entry]
    assert missed
    assert "not reachable" in reports.study_table(entries)
    assert "the nearest that" in missed[0]["unreachable"]
    assert any(
        "No schedule comes near enough to 30% of the plain cost for: ToMe" in line for line in reports.findings(entries)
    )


def test_a_second_study_keeps_the_results_of_the_first(config):
    for study in ("alpha", "radius"):
        chosen = config.replace(study=study, alphas=(0.7,), radii=(1,), timing_batch=0)
        ablation.ablate(chosen, {}, "the command")
    told = json.loads((config.output_dir / "logs" / "ablation_results.json").read_text())
    assert [len(told[study]) for study in ("alpha", "radius")] == [3, 3]


def test_a_checkpoint_that_was_trained_without_merging_is_measured_at_the_default_keep_rate(config):
    chosen = config.replace(study="alpha", alphas=(0.0,), timing_batch=0)
    (entries,) = ablation.ablate(chosen, {"keep_rate": 1.0}, "the command").values()
    assert entries[1]["config"]["keep_rate"] == 0.7


@pytest.mark.slow
def test_the_seeds_command_runs_every_study_and_leaves_its_files(trained, data_dir, tmp_path):
    flags = (
        f"--study all --ckpt {trained} --data_dir {data_dir} --output_dir {tmp_path} "
        "--threads 1 --timing_batch 2 --repeats 3 --warm_up 1 --budgets 0.8 --alphas 0 0.7 --radii 1 "
        "--tolerance 0.2 --seeds 2"
    )
    done = forked.run("-m", "training.ablation", *flags.split())
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "logs" / "ablation_results.json").read_text())
    assert set(told) == set(plan.STUDIES)
    assert {entry["row"] for entry in told["scoring"]} >= set(STRATEGIES) - set(of_role("variant"))
    assert {entry["row"] for entry in told["score"]} >= {*of_role("variant"), *of_role("control"), "none", "lfgm"}
    page = "".join(
        f"<!-- table: {name} -->\n<!-- end -->\n"
        for name in ("methods", "alpha", "scoring", "study_budget", "study_score")
    )
    filled = tables.fill(page, tmp_path / "results")
    plain = told["scoring"][0]
    assert f"| ViT-Small (Baseline) | nothing merges | 22.1 | {plain['parameters'] / 1e6:.2f} | 4.61 |" in filled
    assert "| DynamicViT (r=0.5) |  | 25.4 | not run | 2.90 | not run | 1510 | not run | 81.40 | not run |" in filled
    assert "| 0.00 (= ToMe) | 80.38 |" in filled
    assert "| LFGM (Ours) | 82.65 |" in filled
    assert "Only 100 of 10,000 test images" in filled
    assert tables.fill(filled, tmp_path / "results") == filled


def test_without_records_the_seeds_tables_stand_with_not_run(tmp_path):
    filled = tables.fill("<!-- table: methods -->\n<!-- end -->\n<!-- table: scoring -->\n<!-- end -->\n", tmp_path)
    assert "| FreqMerge (Ours) |  | 22.1 | not run | 2.75 | not run | 1560 | not run | 82.65 | not run |" in filled
    assert "| Random Pruning | 78.20 | not run |" in filled
    assert "The seed's picture names deer and airplane, which are not among the 100 classes" in filled


def test_the_study_of_the_score_covers_every_form_and_control_on_three_schedules(vit):
    rows = plan.score(vit, small(), AblationConfig(tolerance=0.05, seeds=2))
    schedules = {row.budget: row.config for row in rows if row.name.endswith("lfgm")}
    assert [config.merge_layers for config in schedules.values()] == [(1, 3), (1, 3), (0, 1, 3)]
    assert [config.keep_rate for config in schedules.values()] == [0.7, 0.5, 0.5]
    for share in schedules:
        names = {row.name.rpartition("/")[2] for row in rows if row.budget == share}
        assert names >= {*of_role("variant"), *of_role("control"), "none", "attention"}
    halved = list(schedules)[1]
    assert {row.name for row in rows} >= {f"{halved:g}/lfgm alpha 1.0", f"{halved:g}/lfgm score_scale rank"}
    assert all(row.against[0].rpartition("/")[2] == "none" for row in rows if row.name.rpartition("/")[2] == "lfgm")
    own = fitting.cost(vit, small(scoring="lfgm"))
    later = [row for row in rows if row.name.endswith("later")]
    assert [row.config.merge_layers for row in later] == [(2, 4), (2, 4)]
    assert all(fitting.cost(vit, row.config) == pytest.approx(own, rel=0.05) for row in later)


def scored(row, label, pair, half, budget=None, **config):
    prefix = "" if budget is None else f"{budget:g}/"
    return entry(
        prefix + row,
        label,
        budget=budget,
        config={"scoring": row.partition(" ")[0], **config},
        against={f"{prefix}none": pair},
        halves={f"{prefix}none": half},
    )


def test_a_form_of_the_score_is_confirmed_only_by_images_that_did_not_choose_it():
    def half(chosen, confirmed, p):
        return {"chosen": chosen, "confirmed": confirmed, "p": p}

    worse, nothing, better = (
        paired(-0.01, -0.02, -0.005, 0.001),
        paired(0.004, -0.001, 0.009, 0.2),
        paired(0.03, 0.02, 0.04, 1e-9),
    )
    loser = scored("lfgm", "FreqMerge (LFGM)", worse, half(-0.01, -0.01, 0.01))
    lucky = scored("pixel_detail", "pixels", nothing, half(0.02, -0.01, 0.4))
    control = scored("sobel", "control: Sobel energy", better, half(0.05, 0.05, 1e-9))
    told = verdicts.findings([entry("none", "ToMe"), loser, lucky, control])
    assert "better: control: Sobel energy (+3.00); worse: FreqMerge (LFGM) (-1.00); the others show no" in told[0]
    assert "beside its controls, top-1: FreqMerge (LFGM) 80.00, control: Sobel energy 80.00" in told[1]
    assert "of 2 forms of the score the images with an even index prefer pixels (+2.00 points" in told[2]
    assert told[2].endswith("the others give -1.00, p 0.400: not confirmed.")
    real = {**lucky, "halves": {"none": {"chosen": 0.02, "confirmed": 0.02, "p": 0.01}}}
    assert verdicts.findings([loser, real])[2].endswith("the others give +2.00, p 0.010: confirmed.")


def test_many_tests_are_corrected_before_one_of_them_counts():
    half = {"chosen": 0.0, "confirmed": 0.0, "p": 1.0}
    rows = [scored(f"lfgm {i}", f"row {i}", paired(0.01, 0.001, 0.02, 0.01), half) for i in range(6)]
    assert "better: none; worse: none" in verdicts.findings(rows)[0]
    assert "better: row 0 (+1.00), row 1" in verdicts.findings(rows[:2])[0]


def entry(row, label, **others):
    base = {"row": row, "label": label, "budget": None, "top1": 0.8, "images": 10_000, "standard_error": 0.004}
    return {**base, "against": {}, **others}


def paired(difference, low, high, p):
    return {"difference": difference, "low": low, "high": high, "p": p, "wins": 0, "losses": 0}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (paired(0.02, 0.01, 0.03, 0.0001), "better"),
        (paired(-0.02, -0.03, -0.01, 0.0001), "worse"),
        (paired(0.002, -0.001, 0.005, 0.3), reports.UNDECIDED),
        (paired(0.002, 0.0001, 0.005, 0.06), reports.UNDECIDED),
    ],
)
def test_a_verdict_is_what_test_and_interval_agree_on(found, said):
    assert reports.outcome(found) == said
    text = reports.verdict(entry("lfgm", "FreqMerge (LFGM)"), entry("none", "ToMe, same blocks"), found)
    assert f"; {said}" in text
    assert ("does not beat ToMe, same blocks" in text) == (said != "better")


def test_where_freqmerge_does_not_beat_tome_the_findings_say_so():
    rows = [
        entry("alpha=0", "ToMe, same blocks (α = 0)"),
        entry("alpha=0.7", "FreqMerge, α = 0.7", against={"alpha=0": paired(-0.01, -0.02, -0.005, 0.001)}),
        entry("alpha=1", "FreqMerge, α = 1", against={"alpha=0": paired(0.001, -0.005, 0.006, 0.7)}),
    ]
    line = reports.findings(rows)[0]
    assert "worse: FreqMerge, α = 0.7 (-1.00)" in line
    assert line.endswith("FreqMerge does not beat ToMe, same blocks (α = 0).")
    rows[2]["against"]["alpha=0"] = paired(0.01, 0.005, 0.02, 0.001)
    assert "does not beat" not in reports.findings(rows)[0]


def test_the_remarks_name_what_the_seed_mislabels_from_counts():
    counts = budget.count_settings(budget.CountConfig(tome_counts=(13,), rhos=(0.7,)), ModelConfig())
    text = " ".join(reports.remarks([], counts, [], []))
    assert "A ViT-Small/16 with 100 classes has 21.7 M parameters, not 22.1 M." in text
    assert 'The seed\'s "ToMe (r=0.5)" at 2.70 GMACs is mislabelled' in text
    assert 'The seed\'s "DynamicViT (r=0.5)" at 2.90 GMACs is mislabelled' in text
    assert "not run" in text
    assert "deer and airplane" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, False),
        ({"backbone_args": {"global_pool": "avg", "fc_norm": False}}, False),
        ({"backbone_args": {"depth": 8}}, True),
        ({"image_size": 128}, True),
    ],
)
def test_the_remarks_say_that_the_model_is_not_the_seeds_unless_its_size_is(changes, said):
    config = ModelConfig(**changes).model_dump(mode="json")
    own = entry("lfgm", "FreqMerge (LFGM)", config=config, checkpoint="own", digest="d", parameters=10**7)
    assert ("the measured ones for `own`" in " ".join(reports.remarks([own], [], [], []))) is said


def test_dynamicvit_is_not_run_until_a_run_started_from_the_measured_checkpoint_and_the_longest_is_shown():
    config = ModelConfig().model_dump(mode="json")
    measured = {"digest": "d", "macs": 2e9, "parameters": 10**7, "speed_up": 1.0, "images_per_s": 5.0}
    own = entry("lfgm", "FreqMerge (LFGM)", config=config, **measured)
    trained = {**own, "epochs": 10, "rho": 0.7, "start": {"digest": "d"}, "top1": 0.7777, "throughput": []}
    assert "77.77" not in reports.methods([own], [{**trained, "start": {"digest": "e"}}])
    shorter = {**trained, "epochs": 9, "top1": 0.7}
    assert "| 81.40 | 77.77 |" in reports.methods([own], [shorter, trained])
    assert "| 81.40 | 70.00 |" in reports.methods([own], [shorter])
    assert "9 epochs" in reports.methods([own], [shorter])


def test_the_claims_are_the_seeds():
    assert claims.METHODS["freqmerge"].top1 - claims.METHODS["tome"].top1 == pytest.approx(2.27)
    assert claims.ALPHA[0.7] == claims.Claim(82.65, 1560)
    assert claims.ALPHA[0.0].top1 == claims.METHODS["tome"].top1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--study gamma", "study: expected 'alpha', 'scoring', 'budget', 'radius', 'score' or 'all', found 'gamma'"),
        ("--strategies lfgm magic", "without magic"),
        ("--budgets 1.5", "budgets: expected shares between 0 and 1"),
        ("--alphas 2 --study alpha", "alpha: expected 0 to 1, found 2.0"),
        ("--ckpt nowhere", "expected a checkpoint file"),
    ],
)
def test_a_bad_ablation_ends_with_one_clear_line_and_code_two(flags, said, trained, data_dir, tmp_path, capsys):
    words = [*f"--ckpt {trained} --data_dir {data_dir} --output_dir {tmp_path}".split()]
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: ablation.main([*words, *flags.split()]))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
