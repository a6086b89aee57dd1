"""What README.md and the first pages of docs/ tell a reader to run is run, on a real server and the shipped checkpoint.

Commands run in a temporary folder, so nothing is written into the tree.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from PIL import Image

from model.checkpoint import read_manifest
from tests.support import standin
from tests.support.paths import DOCS
from tests.support.process import PATIENCE_S, ROOT, Process

README, GUIDE = ROOT / "README.md", DOCS / "guide"
API, MODELS, CLAIMS = DOCS / "reference/api.md", GUIDE / "models.md", DOCS / "studies/claims.md"
PAGES = [
    README,
    *(GUIDE / f"{name}.md" for name in ("start", "serving", "development")),
    API,
    DOCS / "studies/throughput.md",
]
"""The pages whose commands are run."""

EXAMPLE_ID = re.compile(r"(?<=image_id=)[\w-]{22}")
TINY_RUN = (
    " --backbone vit_tiny_patch16_224 --backbone_args patch_size=8 embed_dim=24 depth=2 num_heads=2 --image_size 32"
    " --merge_layers 1 --epochs 1 --batch_size 64 --warmup_epochs 0.1 --threads 1 --device cpu"
)
NOT_RUN = {
    "docker compose": "needs a container engine; tests/docker holds the files to their schemas",
    "make": "installs, serves or runs these very tests; that make knows what to do is checked instead",
    ".venv/bin/python -m training.timing": "measures a ViT-Small for minutes; its flags are checked instead",
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The single commands of its sh blocks: continued lines joined, trailing comments left out."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.join(words) for words in (shlex.split(line, comments=True) for line in lines) if words]


class Ran(NamedTuple):
    """A command that ended well."""

    output: str
    folder: Path


def labels(ran: Ran) -> None:
    assert json.loads(ran.output)["predictions"][0]["superclass"]


def rocket(ran: Ran) -> None:
    assert json.loads(ran.output)["predictions"][0]["label"] == "rocket"


def batch(ran: Ran) -> None:
    assert [found["problem"] for found in json.loads(ran.output)["results"]] == [None, None]


def metrics(ran: Ran) -> None:
    assert "freqmerge_http_requests_total{" in ran.output


def drawn(name: str, wide: bool = False) -> Callable[[Ran], None]:
    def check(ran: Ran) -> None:
        with Image.open(ran.folder / name) as picture:
            picture.load()
            assert (picture.format, picture.width > 2 * picture.height) == ("PNG", wide)

    return check


def asked(ran: Ran) -> None:
    assert ran.output.split()[1] == "rocket"
    drawn("out.png")(ran)


def rewritten(ran: Ran) -> None:
    assert ran.output == "", "every table was up to date"
    assert (ran.folder / "README.md").read_text("utf-8") == README.read_text("utf-8")


def trained(ran: Ran) -> None:
    assert (ran.folder / "checkpoints" / "best_model.safetensors").stat().st_size > 1000


RULES: dict[str, Callable[[Ran], None]] = {
    r"curl .*rocket\.jpg .*localhost:8000/classify(\?top_k=\d)?'?": rocket,
    r"curl -F \S+chelsea\.jpg localhost:8000/classify": labels,
    r"curl -F file=@rocket\.jpg localhost:8000/classify": rocket,
    r"curl -F \S+ -F \S+ '?localhost:8000/classify/batch(\?top_k=1')?": batch,
    r"curl -f -o overlay\.png '?localhost:8000/heatmap\?image_id=.*": drawn("overlay.png"),
    r"curl -f -o panel\.png .*rocket\.jpg .*localhost:8000/heatmap\?view=panel'?": drawn("panel.png", wide=True),
    r"curl localhost:8000/metrics": metrics,
    r"\S*python -m service\.client \S*rocket\.jpg --heatmap out\.png": asked,
    r"\S*python -m training\.tables": rewritten,
    r"\S*python -m training\.train --data_dir DIR": trained,
}


def parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises SystemExit unless the command's own parser takes these words; runs nothing."""

    class Parsed(Exception):
        """Stands for the rest of the command."""

    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *_: Any) -> None:
        parse(self, words)
        raise Parsed

    module, *words = line.partition("-m ")[2].split()
    main = importlib.import_module(module).main
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        with pytest.raises(Parsed):
            main(words)


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    """A ready server with the shipped checkpoint, in the numbers that `make serve` takes on a CPU."""
    process = Process("--port", "0", device="cpu", engine="openvino", precision="int8")
    try:
        with process.client() as client:
            process.told("ready")
            yield client
    finally:
        process.stop()


@pytest.fixture(scope="module")
def answer(server: httpx.Client) -> dict[str, Any]:
    """What it says of the rocket."""
    photo = (ROOT / "service/samples/rocket.jpg").read_bytes()
    body: dict[str, Any] = server.post("/classify", content=photo, headers={"Content-Type": "image/jpeg"}).json()
    return body


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the commands expect around them."""
    (tmp_path / "service").mkdir()
    samples = ROOT / "service/samples"
    (tmp_path / "service/samples").symlink_to(samples)
    for name, sample in (("rocket", "rocket"), ("a", "chelsea"), ("b", "rocket")):
        shutil.copy(samples / f"{sample}.jpg", tmp_path / f"{name}.jpg")
    for name in ("README.md", "Makefile", *(path.name for path in ROOT.glob("requirements*.lock"))):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images"))
    return tmp_path


def run(words: list[str], folder: Path) -> Ran:
    """Runs a program there; it has to exit with zero."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, (words, done.stderr)
    return Ran(done.stdout, folder)


def excused(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it is one that is not run; then what can be told without running it is checked."""
    name = next((name for name in NOT_RUN if command == name or command.startswith(f"{name} ")), None)
    if name == "make":
        assert run([*command.split(), "--dry-run"], folder).output.strip(), "expected a target that runs something"
    elif name == "docker compose":
        assert all((ROOT / file).is_file() for file in re.findall(r"-f (\S+)", command))
    elif name:
        parsed(command, monkeypatch)
    return name is not None


@pytest.mark.parametrize(
    "command",
    list(dict.fromkeys(command for page in PAGES for command in commands(page))),
)
def test_a_command_does_what_the_page_says(
    command: str, server: httpx.Client, answer: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if excused(command, folder, monkeypatch):
        return
    matching = [check for pattern, check in RULES.items() if re.fullmatch(pattern, command)]
    assert matching, f"no rule runs `{command}`: add a pattern and a check to RULES, or a reason to NOT_RUN"
    line = EXAMPLE_ID.sub(answer["image_id"], command.replace("localhost:8000", str(server.base_url).rstrip("/")))
    if "service.client" in line:
        line += f" --url {server.base_url}"
    if "training.train" in line:
        line = line.replace("DIR", str(standin.write(folder / "data"))) + TINY_RUN
    words = shlex.split(line)
    if words[0] in ("python", ".venv/bin/python"):
        words[0] = sys.executable
    for check in matching[:1]:
        check(run(words, folder))


def test_the_example_answer_is_what_the_service_gives(answer: dict[str, Any]) -> None:
    (text,) = blocks(README, "json")
    told = json.loads(re.sub(r",\s*… three more", "", text))
    assert list(told) == list(answer)
    assert EXAMPLE_ID.sub(answer["image_id"], told["heatmap_url"]) == answer["heatmap_url"]
    assert len(answer["predictions"]) == len(told["predictions"]) + 3
    for expected, found in zip(told["predictions"], answer["predictions"], strict=False):
        assert found.pop("probability") == pytest.approx(expected.pop("probability"), abs=0.01)
        assert found == expected
    assert told["model"]["name"] == answer["model"]["name"]
    assert answer["model"]["digest"].startswith(told["model"]["digest"].rstrip("…"))
    assert list(told["timings_ms"]) == list(answer["timings_ms"])


def test_a_model_is_built_by_name_as_the_guide_says(tmp_path: Path) -> None:
    _, _, code = blocks(MODELS, "python")
    *_, arrows = re.findall(r"\d+(?: → \d+)+", code)
    shapes, schedule = run([sys.executable, "-c", code], tmp_path).output.splitlines()
    assert re.findall(r"\[(.*?)\]", shapes) == ["2, 100", "2, 196", "2, 196"]
    assert list(dict.fromkeys(re.findall(r"\d+", schedule))) == arrows.split(" → ")


def test_an_own_model_is_saved_as_the_guide_says(tmp_path: Path) -> None:
    run([sys.executable, "-c", blocks(MODELS, "python")[1]], tmp_path)
    manifest = read_manifest(tmp_path / "pets.safetensors")
    assert (manifest.class_names, manifest.superclasses) == (("cat", "dog"), ())


def test_tokens_of_an_own_model_are_merged_as_the_readme_and_the_guide_say(tmp_path: Path) -> None:
    (own,) = blocks(README, "python")
    assert blocks(MODELS, "python")[0] == own
    told = run([sys.executable, "-c", own], tmp_path).output
    assert told.startswith("torch.Size([2, 1000]) ")
    assert list(dict.fromkeys(re.findall(r"\d+", told.partition(") ")[2]))) == ["196", "137", "96", "67", "47"]


@pytest.mark.parametrize("code", blocks(API, "python"), ids=["triton", "client"])
def test_a_python_client_of_the_api_page_finds_the_rocket(code: str, server: httpx.Client, folder: Path) -> None:
    address = str(server.base_url).rstrip("/").removeprefix("http://")
    assert "rocket" in run([sys.executable, "-c", code.replace("localhost:8000", address)], folder).output


def seed_commands() -> list[str]:
    """The right-hand commands of the table of the original README's commands."""
    rows = [line.split("|") for line in CLAIMS.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    found = [command for row in rows if len(row) == 4 for command in re.findall(r"`(python -m [^`]*)`", row[2])]
    evaluate = next(row[1] for row in rows if "--benchmark" in row[1])
    return [*found, *(f"python -m training.evaluate {flag}" for flag in re.findall(r"`(--\w+)`", evaluate))]


@pytest.mark.parametrize("command", seed_commands())
def test_a_command_that_replaces_one_of_the_seeds_has_these_flags(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed(command, monkeypatch)
