import json

import pytest
import torch

from model import load_checkpoint, save_checkpoint
from model.engines import artifact, tensorrt_engine
from model.engines.artifact import Profile
from model.errors import ArtifactError, ConfigError, EngineError
from tests.model.tiny import tiny

ENGINE = b"not really TensorRT's bytes"
CPU = torch.device("cpu")
PROFILES = tensorrt_engine.profiles(256)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "tiny.safetensors"
    save_checkpoint(path, tiny())
    return load_checkpoint(path)


@pytest.fixture
def origin(checkpoint):
    return artifact.origin_of(checkpoint, "fp16", CPU)


@pytest.fixture
def written(tmp_path, origin):
    return artifact.write(tmp_path, origin, PROFILES, ENGINE)


def test_an_engine_is_read_back_as_it_was_written(written, origin):
    assert artifact.read(written, origin, 256) == ENGINE


def test_its_name_says_model_and_precision_and_differs_with_anything_it_is_made_of(checkpoint, origin, tmp_path):
    others = [
        artifact.origin_of(checkpoint, "bf16", CPU),
        artifact.origin_of(load_checkpoint(checkpoint.path, alpha=0.0), "fp16", CPU),
        origin.replace(versions={**origin.versions, "tensorrt": "0"}),
        origin.replace(code_digest="0" * 64),
        origin.replace(gpu="another"),
    ]
    names = {one.path(tmp_path).name for one in (origin, *others)}
    assert len(names) == 6
    assert origin.path(tmp_path).name.startswith("tiny-fp16-")


def test_the_manifest_names_checkpoint_gpu_versions_and_batches(written, checkpoint):
    told = json.loads(written.with_suffix(".json").read_text())
    assert told["origin"]["digest"] == checkpoint.manifest.digest
    assert set(told["origin"]["versions"]) == {
        "freqmerge",
        "torch",
        "torch-tensorrt",
        "tensorrt-cu13",
        "tensorrt-cu13-bindings",
        "tensorrt-cu13-libs",
        "tensorrt",
    }
    assert told["profiles"] == [
        {"smallest": 1, "best": 1, "largest": 1},
        {"smallest": 2, "best": 8, "largest": 8},
        {"smallest": 9, "best": 256, "largest": 256},
    ]
    assert told["bytes"] == len(ENGINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"digest": "f" * 64}, "stale or foreign engine: digest expected f+, found"),
        ({"gpu": "H100"}, "gpu expected H100, found none; build it again"),
        ({"versions": {"torch": "3.0"}}, r"version of torch expected 3\.0, found 2"),
    ],
)
def test_a_stale_or_foreign_engine_is_refused_with_the_reason(written, origin, change, words):
    with pytest.raises(ArtifactError, match=words):
        artifact.read(written, origin.replace(**change), 256)


def test_an_engine_of_another_format_is_refused(written, origin):
    manifest = written.with_suffix(".json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(ArtifactError, match="expected engine format 3, found 2; build it again"):
        artifact.read(written, origin, 256)


def test_an_engine_for_smaller_batches_is_refused(written, origin):
    with pytest.raises(ArtifactError, match=r"expected an engine for 1\.\.257 images, found 1\.\.256"):
        artifact.read(written, origin, 257)


@pytest.mark.parametrize("damaged", [ENGINE[:-1], ENGINE + b"!", b""])
def test_changed_bytes_are_refused(written, origin, damaged):
    written.write_bytes(damaged)
    with pytest.raises(ArtifactError, match=r"expected 27 bytes of SHA-256 .*cut short or changed"):
        artifact.read(written, origin, 256)


def test_a_missing_or_damaged_manifest_is_refused(written, origin):
    manifest = written.with_suffix(".json")
    manifest.write_text("{")
    with pytest.raises(ArtifactError, match="expected the manifest of an engine, found: "):
        artifact.read(written, origin, 256)
    manifest.unlink()
    with pytest.raises(ArtifactError, match="found none that can be read"):
        artifact.read(written, origin, 256)


def test_a_profile_is_in_order():
    with pytest.raises(ConfigError, match="expected smallest <= best <= largest, found 1, 64, 32"):
        Profile(largest=32)


def test_a_refusal_is_an_engine_error():
    assert issubclass(ArtifactError, EngineError)


def test_an_engine_in_the_cache_is_taken_and_a_damaged_one_is_deleted(written, origin, caplog):
    folder = written.parent
    assert artifact.find_engine(origin, 32, folder, bytes) == ENGINE
    written.write_bytes(b"")
    assert artifact.find_engine(origin, 32, folder, bytes) is None
    assert list(folder.iterdir()) == []
    assert "cut short or changed; build it again" in caplog.text


def test_a_build_that_cannot_begin_is_not_announced(checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    with pytest.raises(EngineError, match="tensorrt cannot be used: it needs a CUDA device"):
        tensorrt_engine.create(checkpoint, "fp16", CPU, 32, tmp_path)
    assert (caplog.messages, list(tmp_path.iterdir())) == ([], [])
