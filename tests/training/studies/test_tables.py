import pytest
import torch

from model import ModelConfig
from tests.support.paths import ROOT
from training import tables
from training.measure import records
from training.studies import reports


@pytest.mark.parametrize("page", tables.pages(ROOT), ids=lambda page: page.name)
def test_the_tables_of_every_page_are_what_its_records_give(page):
    text = page.read_text(encoding="utf-8")
    assert tables.fill(text, ROOT / records.RESULTS) == text, "python -m training.tables writes them again"


def test_every_table_that_a_page_asks_for_exists_and_none_is_forgotten():
    asked = {name for page in tables.pages(ROOT) for _, name, _ in tables.MARKED.findall(page.read_text("utf-8"))}
    studies = {"study_alpha", "study_scoring"}  # docs/studies/claims.md shows these two
    assert asked | studies == set(tables.TABLES)


def test_a_study_without_records_says_that_it_was_not_run(tmp_path):
    assert tables.fill("<!-- table: study_radius -->\n<!-- end -->\n", tmp_path) == (
        "<!-- table: study_radius -->\nnot run\n<!-- end -->\n"
    )


def test_a_trial_on_fewer_images_never_replaces_a_result(tmp_path):
    device = torch.device("cpu")
    full = [{"row": "plain", "images": 100}, {"row": "lfgm", "images": 100}]
    first = records.write("ablation_alpha", "full", full, device, tmp_path)
    trial = records.write("ablation_alpha", "trial", [{"row": "plain", "images": 99}], device, tmp_path)
    again = records.write("ablation_alpha", "again", full, device, tmp_path)
    assert trial.parent.name == "trials"
    assert first == again
    assert [entry["command"] for entry in records.read("ablation_alpha", tmp_path)] == ["again", "again"]
    assert records.read("ablation_alpha", trial.parent)[0]["command"] == "trial"


def test_asking_for_help_rewrites_nothing(monkeypatch, tmp_path, capsys):
    (tmp_path / "README.md").write_text("<!-- table: study_radius -->\n<!-- end -->\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        tables.main(["--help"])
    assert "docs/results" in capsys.readouterr().out
    assert "not run" not in (tmp_path / "README.md").read_text()
    tables.main([])
    assert "not run" in (tmp_path / "README.md").read_text()


def test_every_row_of_the_methods_says_what_was_measured():
    measured = {"top1": 0.5, "macs": 10**9, "parameters": 10**6, "digest": "d"}
    changes = {
        "plain": {"keep_rate": 1.0},
        "none": {"scoring": "none"},
        "lfgm": {},
        "tome_best": {"scoring": "none", "merge_layers": (0, 1), "merge_counts": (13, 12)},
    }
    entries = [
        {**measured, "row": row, "config": ModelConfig(**change).model_dump(mode="json")}
        for row, change in changes.items()
    ]
    dynamic = {**measured, "rho": 0.7, "epochs": 12, "start": {"digest": "d"}}
    lines = reports.methods(entries, [dynamic]).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == [
        "nothing merges",
        "ρ = 0.7, 12 epochs",
        "keep rate 0.7, blocks 4 6 8 10",
        "keep rate 0.7, α 0.7, blocks 4 6 8 10",
        "12 to 13 tokens in every block",
    ]
