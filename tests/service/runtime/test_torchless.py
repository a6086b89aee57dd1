import json
import subprocess
import sys

import pytest

from model.checkpoint import load_checkpoint, save_checkpoint
from model.engines import portable
from model.errors import FreqMergeError
from model.images.preprocess import Preprocess
from service.runtime import torchless
from service.runtime.loading import load_model
from service.settings import Settings

FULL = "install the full set: make serve FULL=1, or pip install 'freqmerge[torch]'"

PROGRAM = """
import asyncio, json, sys
absent = ("torch", "timm", "torchvision", "matplotlib", "pyarrow")
if sys.argv[2] == "without":
    for name in absent:
        sys.modules[name] = None
from pathlib import Path
import httpx
from service.app import create_app
from service.settings import Settings

VIEWS = ("overlay", "score", "merged", "original", "panel")

async def main():
    app = create_app(Settings(checkpoint=Path(sys.argv[1]), precision="int8", threads=1, max_batch_size=4))
    picture = Path("docs/images/panel.png").read_bytes()
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            while (ready := await client.get("/ready")).status_code != 200:
                assert app.state.service.failure is None, app.state.service.failure
                await asyncio.sleep(0.05)
            answer = (await client.post("/classify", content=picture, headers={"content-type": "image/png"})).json()
            where = "/" + answer["heatmap_url"]
            drawn = {view: (await client.get(f"{where}&view={view}")).content.hex() for view in VIEWS}
            data = (await client.get(f"{where}&format=json")).json()
            card = (await client.get("/model")).json()
            metrics = (await client.get("/metrics")).text
    assert sys.argv[2] == "with" or not [name for name in absent if sys.modules.get(name)]
    same = {"predictions": answer["predictions"], "drawn": drawn, "data": data}
    print(json.dumps({"same": same, "card": card, "families": sorted(
        line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE freqmerge")
    )}))

asyncio.run(main())
"""


def served(checkpoint, how):
    """What a service of its own answers, with torch or without."""
    command = [sys.executable, "-c", PROGRAM, str(checkpoint), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_without_torch_the_service_answers_and_draws_the_same_to_the_last_byte(int8_export):
    without, full = served(int8_export[0], "without"), served(int8_export[0], "with")
    assert without["same"] == full["same"]
    assert without["families"] == full["families"]
    assert (without["card"]["engine"]["kind"], without["card"]["engine"]["precision"]) == ("openvino", "int8")
    assert without["card"]["engine"]["reason"] == "openvino: int8, which needs no torch; torch is not installed"
    for name in ("name", "digest", "parameters", "config", "schedule", "grid", "scores"):
        assert without["card"][name] == full["card"][name]


@pytest.mark.slow
def test_the_artifact_is_found_beside_the_checkpoint_in_the_cache_or_by_its_own_name(int8_export, tmp_path):
    checkpoint = int8_export[0]
    alone = tmp_path / "moved" / checkpoint.name
    alone.parent.mkdir()
    alone.write_bytes(checkpoint.read_bytes())
    ways = (
        {"checkpoint": checkpoint},
        {"checkpoint": portable.path_beside(checkpoint)},
        {"checkpoint": alone, "engine_cache": checkpoint.parent},
    )
    for way in ways:
        found = torchless.load(Settings(**way, threads=1))
        assert found.manifest == load_checkpoint(checkpoint).manifest
        assert found.engine.precision == "int8"


@pytest.mark.slow
def test_processes_with_and_without_torch_find_each_others_pictures(int8_export):
    without = torchless.load(Settings(checkpoint=int8_export[0], threads=1))
    full = load_model(Settings(checkpoint=int8_export[0], engine="eager", device="cpu", threads=1))
    assert without.fingerprint == full.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"engine": "eager"}, "engine: expected auto or openvino, as torch is not installed, found 'eager'; " + FULL),
        ({"device": "cuda"}, "device: expected auto or cpu, as torch is not installed, found 'cuda'; " + FULL),
        ({"precision": "fp32"}, "precision: expected auto or int8, as torch is not installed, found 'fp32'; " + FULL),
        (
            {"keep_rate": 0.9},
            "keep_rate: expected 0.7, which the artifact was made with, as torch is not installed, found 0.9; " + FULL,
        ),
        (
            {"alpha": 0.0},
            "alpha: expected 0.7, which the artifact was made with, as torch is not installed, found 0; " + FULL,
        ),
    ],
)
def test_what_needs_torch_says_what_was_asked_what_is_there_and_how_to_get_it(int8_export, asked, said):
    with pytest.raises(FreqMergeError) as told:
        torchless.load(Settings(checkpoint=int8_export[0], **asked))
    assert str(told.value) == said


@pytest.mark.slow
def test_a_keep_rate_that_the_artifact_has_is_no_reason_to_refuse(int8_export):
    assert torchless.load(Settings(checkpoint=int8_export[0], keep_rate=0.7, threads=1)).config.keep_rate == 0.7


@pytest.mark.slow
def test_an_artifact_of_other_weights_than_the_checkpoint_beside_it_is_refused(int8_export, tmp_path):
    for file in int8_export[0].parent.glob("tiny.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "tiny.safetensors"
    model = load_checkpoint(path).model
    model.vit.head.bias.data += 1
    save_checkpoint(path, model, preprocess=Preprocess(native_size=16))
    with pytest.raises(FreqMergeError, match="a stale artifact: expected checkpoint"):
        torchless.load(Settings(checkpoint=path))


def test_a_checkpoint_without_an_artifact_says_how_to_make_one(tmp_path):
    (tmp_path / "own.safetensors").write_bytes(b"")
    with pytest.raises(FreqMergeError, match=r"expected own\.int8\.json beside .*own\.safetensors, found none"):
        torchless.load(Settings(checkpoint=tmp_path / "own.safetensors"))
