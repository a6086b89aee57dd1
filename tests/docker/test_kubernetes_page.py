"""docs/guide/kubernetes.md: its replicas follow from its inputs, its inputs from the records."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.files import DOCKER, settings
from tests.support.paths import DOCS
from tests.support.programs import program

PAGE = (DOCS / "guide/kubernetes.md").read_text(encoding="utf-8")
LOADS = (1_000, 100_000)
PEER, MANY = ("peer", "freqmerge", 64.0), ("many", "freqmerge", "/classify/batch")


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first line begins like that, cell by cell."""
    lines = PAGE[PAGE.index(f"\n| {heading} |") + 1 :].splitlines()
    rows = lines[2 : next(index for index, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def inputs() -> dict[str, float]:
    return {name: float(value) for name, value, *_ in table("input")}


def row(name: str, engine: float, replica: float) -> list[str]:
    """A row of the second table; rates in images/s."""
    planned = inputs()["planned load"] / 100 * replica
    digits = 0 if engine >= 1000 else 1
    needed = [f"{max(2, math.ceil(load / planned)):,}" for load in LOADS]
    return [name, f"{engine:,.{digits}f}", f"{replica:,.{digits}f}", *needed]


def rows_by_formula() -> list[list[str]]:
    """The second table, as the page's formulas give it from its inputs."""
    given = inputs()
    cpus, request_s = given["CPUs of a CPU replica"], given["CPU time of a request"] / 1000
    found = []
    for precision in ("fp32", "int8"):
        engine = given[f"engine on two CPUs, {precision}"]
        found.append(row(f"CPU, {precision}", engine, cpus / (cpus / engine + request_s)))
    for gpu in ("L4", "H100"):
        share = given["share of the peak"] / 100
        engine = share * given[f"peak of an {gpu}"] * 1e12 / (2 * given["multiplications of an image"] * 1e9)
        found += [
            row(f"{gpu}, {kind}", engine, min(engine, given[f"{kind} through one process"]))
            for kind in ("single pictures", "64 files per request")
        ]
    return found


def records(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DOCS / f"results/{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_replicas_are_what_the_formulas_make_of_the_inputs() -> None:
    assert table("replica") == rows_by_formula()


def test_every_input_says_whether_it_was_measured() -> None:
    kinds = {kind for _, _, _, kind, _ in table("input")}
    assert kinds == {"measured", "counted", "on paper", "a choice"}


def test_a_measured_input_is_the_figure_of_its_record() -> None:
    given = inputs()
    merging = {"runtime": "OpenVINO", "model": "FreqMerge", "batch_size": 8}
    for precision in ("fp32", "int8"):
        wanted = {**merging, "precision": precision}
        rates = {
            line["machine"]["device"]: line["images_per_s"]
            for line in records("runtimes")
            if wanted.items() <= line.items()
        }
        assert given[f"engine on two CPUs, {precision}"] == round(max(rates.values()), 1)
    wanted = {"model": "FreqMerge", "engine": "inductor", "precision": "fp16", "batch_size": 256}
    [line] = [line for line in records("gpu") if wanted.items() <= line.items()]
    used = line["images_per_s"] * 2 * line["macs"] / (given["peak of an H100"] * 1e12)
    assert given["share of the peak"] == round(100 * used)
    [macs] = [line["macs"] for line in records("counts") if line["row"] == "lfgm"]
    assert given["multiplications of an image"] == round(macs / 1e9, 2)
    bench = records("service_bench")
    [single] = [one for one in bench if (one.get("kind"), one.get("server"), one.get("concurrency")) == PEER]
    [many] = [one for one in bench if (one.get("kind"), one.get("server"), one.get("route")) == MANY]
    assert given["single pictures through one process"] == round(single["images_per_s"])
    assert given["64 files per request through one process"] == round(many["images_per_s"])


def test_the_choices_are_those_of_the_files() -> None:
    [deployment, *_, scaler] = yaml.safe_load_all((DOCKER / "kubernetes/deployment-cpu.yml").read_text("utf-8"))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert inputs()["CPUs of a CPU replica"] == int(container["resources"]["requests"]["cpu"])
    planned = scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"]
    assert inputs()["planned load"] == planned


def snippets() -> list[dict[str, Any]]:
    """The YAML of the page."""
    found = re.findall(r"^  ```yaml\n(.*?)^  ```", PAGE, re.DOTALL | re.MULTILINE)
    return [yaml.safe_load(text) for text in found]


def test_prometheus_takes_the_scrape_configuration_under_the_job_that_rules_and_dashboard_select(
    tmp_path: Path,
) -> None:
    [scraping] = [one for one in snippets() if "scrape_configs" in one]
    [job] = scraping["scrape_configs"]
    assert job["job_name"] == settings("prometheus.yml")["scrape_configs"][0]["job_name"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]  # Debian's Prometheus is built without it
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(scraping), encoding="utf-8")
    command = [program("promtool"), "check", "config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["deployment.yml", "deployment-cpu.yml", "rayservice.yml", "inferenceservice.yml"])
def test_every_file_for_a_cluster_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE
    assert {file.name for file in (DOCKER / "kubernetes").glob("*.yml")} == {
        "deployment.yml",
        "deployment-cpu.yml",
        "rayservice.yml",
        "inferenceservice.yml",
    }
