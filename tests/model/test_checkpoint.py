import hashlib
import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import load_checkpoint, save_checkpoint
from model.checkpoint import read_manifest
from model.errors import CheckpointError, ConfigError
from model.images.preprocess import Preprocess
from model.labels import CLASS_NAMES
from model.manifest import METADATA_KEY
from tests.model.tiny import images, tiny


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "tiny.safetensors"
    preprocess = Preprocess(native_size=48, interpolation="bilinear")
    save_checkpoint(path, tiny(), preprocess=preprocess, scores={"top1": 0.25}, training={"epochs": 3})
    return path


def test_a_saved_model_comes_back_with_all_it_knows(saved):
    checkpoint = load_checkpoint(saved)
    manifest = checkpoint.manifest
    assert manifest.name == "tiny"
    assert manifest.config == tiny().config
    assert manifest.preprocess == Preprocess(native_size=48, interpolation="bilinear")
    assert manifest.class_names == CLASS_NAMES
    assert manifest.superclasses[CLASS_NAMES.index("rocket")] == "vehicles_2"
    assert manifest.scores == {"top1": 0.25}
    assert manifest.training == {"epochs": 3}
    assert set(manifest.versions) == {"freqmerge", "python", "torch", "timm"}
    with torch.no_grad():
        assert torch.equal(checkpoint.model(images(2)).logits, tiny()(images(2)).logits)


def test_a_checkpoint_may_be_read_by_whoever_may_read_other_files(saved):
    other = saved.with_name("other")
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode


def test_a_loaded_model_is_ready_to_infer(saved):
    model = load_checkpoint(saved).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_overrides_change_the_merging_and_keep_the_weights(saved):
    plain = load_checkpoint(saved, keep_rate=1.0).model
    with torch.no_grad():
        torch.testing.assert_close(plain(images(2)).logits, tiny().vit(images(2)), atol=1e-5, rtol=0)


def test_a_bad_override_names_its_field(saved):
    with pytest.raises(ConfigError, match="alpha: expected 0 to 1, found 3"):
        load_checkpoint(saved, alpha=3)


def test_half_precision_storage_halves_the_file_and_loads_as_single(saved, tmp_path):
    half = tmp_path / "half.safetensors"
    save_checkpoint(half, tiny(), dtype=torch.float16)
    assert half.stat().st_size < 0.6 * saved.stat().st_size
    model = load_checkpoint(half).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(model(images(2)).logits, tiny()(images(2)).logits, atol=0.05, rtol=0.05)


def test_the_same_weights_and_facts_give_the_same_digest_and_others_another(saved, tmp_path):
    again = tmp_path / "tiny.safetensors"
    preprocess = Preprocess(native_size=48, interpolation="bilinear")
    facts = {"preprocess": preprocess, "training": {"epochs": 3}}
    digest = read_manifest(saved).digest
    assert save_checkpoint(again, tiny(), scores={"top1": 0.25}, **facts).digest == digest
    assert save_checkpoint(again, tiny(), scores={"top1": 0.26}, **facts).digest != digest


def test_class_names_must_fit_the_head(tmp_path):
    with pytest.raises(ConfigError, match=r"expected 100 names .* found 2 names"):
        save_checkpoint(tmp_path / "x.safetensors", tiny(), class_names=["a", "b"], superclasses=[])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, tiny())
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("not a checkpoint, but long enough to look like one at first")


def pickled(path):
    path.write_bytes(pickle.dumps({"weight": 1}))


def zipped(path):
    torch.save({"weight": torch.ones(1)}, path)


def foreign(path):
    save_file({"weight": torch.ones(1)}, path)


def altered(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def edited(path):
    rewrite(path, lambda told: told["scores"].update(top1=0.99))


def from_the_future(path):
    rewrite(path, lambda told: told.update(format=99))


def without_a_manifest(path):
    save_file(load_file(path), path, {METADATA_KEY: "nonsense"})


def digest_of(told, state):
    """SHA-256 over the facts but the digest, then over every tensor's name, type, shape and bytes, in order of name."""
    facts = {key: value for key, value in told.items() if key != "digest"}
    hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key, tensor in sorted(state.items()):
        hasher.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()


def rewrite(path, change):
    """Edits the manifest inside the file and leaves the tensors alone."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    told = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
    change(told)
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(told)})


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (truncated, "found one that is truncated or of another format"),
        (emptied, "found one that is truncated or of another format"),
        (text, "found one that is truncated or of another format"),
        (pickled, "found a pickled file, which is never opened"),
        (zipped, "found a pickled file, which is never opened"),
        (foreign, "found a safetensors file without its manifest; plain timm weights go through"),
        (altered, "weights or manifest were changed after saving"),
        (edited, "weights or manifest were changed after saving"),
        (from_the_future, "expected checkpoint format 1, found 99"),
        (without_a_manifest, "found a damaged one"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_the_reason(saved, damage, found):
    damage(saved)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    assert found in str(caught.value)
    assert str(saved) in str(caught.value)


def test_a_pth_file_is_refused_by_its_name_alone(tmp_path):
    path = tmp_path / "best_model.pth"
    path.write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match=r"never opened .* safetensors\.torch\.save_file"):
        load_checkpoint(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="found nothing"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="found a directory"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_older_than_a_field_of_the_config_loads_with_its_default(saved):
    """The file of an earlier version: its digest covers the fields of its time."""
    data = saved.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    told = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
    del told["config"]["merge_counts"], told["config"]["cosine"]
    state = load_file(saved)
    told["digest"] = digest_of(told, state)
    save_file(state, saved, {METADATA_KEY: json.dumps(told)})
    manifest = load_checkpoint(saved).manifest
    assert (manifest.config.merge_counts, manifest.config.cosine) == ((), "signed")
    assert manifest.digest == told["digest"]


def test_weights_of_another_architecture_are_refused(saved):
    with pytest.raises(CheckpointError, match=r"tensors differ, first .*: expected .*, found "):
        load_checkpoint(saved, image_size=56)
