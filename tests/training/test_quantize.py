import pytest

from model import load_checkpoint
from model.engines import openvino_engine, portable
from model.engines.choice import create_engine
from model.engines.portable import Accuracy
from model.errors import ArtifactError
from tests.support import forked
from training import quantize
from training.measure import records
from training.quantize import QuantizeConfig


@pytest.fixture(scope="module")
def quantized(trained, data_dir, tmp_path_factory):
    """A checkpoint, quantized by the command in a process of its own: the shape checks here cannot be exported."""
    folder = tmp_path_factory.mktemp("quantized")
    path = folder / trained.name
    path.write_bytes(trained.read_bytes())
    flags = ["--ckpt", path, "--data_dir", data_dir, "--output_dir", folder, "--calibration_images", "40"]
    done = forked.run("-m", "training.quantize", *flags, "--threads", "1")
    assert done.returncode == 0, done.stderr
    return path, done.stdout


@pytest.mark.slow
def test_a_quantized_checkpoint_says_what_int8_costs_paired_on_all_test_images(quantized):
    path, printed = quantized
    shipped = portable.read(portable.path_beside(path))
    found = shipped.accuracy["int8"]
    assert found.images == 100
    assert found.difference == pytest.approx(found.top1 - found.reference_top1)
    assert found.low <= found.difference <= found.high
    assert shipped.calibration["images"] == 40
    assert f"int8: top-1 {found.top1:.2%}" in printed
    [record] = records.read("precision", path.parent / "results")
    assert (record["precision"], record["top1"], record["artifact"]) == ("int8", found.top1, shipped.digest)


@pytest.mark.slow
def test_the_measured_accuracy_is_that_of_the_engine_that_auto_would_take(quantized, data_dir):
    path, _ = quantized
    config = QuantizeConfig(ckpt=path, data_dir=data_dir, output_dir=path.parent, quantize=False, images=50, threads=1)
    quantize.quantize(config, "a test")
    found = portable.read(portable.path_beside(path)).accuracy["int8"]
    assert found.images == 50
    engine = create_engine(load_checkpoint(path), "openvino", "cpu", max_batch_size=50, precision="int8")
    assert engine.precision == "int8"
    images = quantize.dataset.test_images(quantize.dataset.source(data_dir), load_checkpoint(path).manifest, path)
    right = engine.run(images.pixels[:50].numpy()).logits.argmax(axis=1) == images.labels[:50].numpy()
    assert found.top1 == right.mean()


@pytest.mark.slow
def test_an_artifact_of_other_weights_is_not_measured(quantized, trained, data_dir, tmp_path):
    path, _ = quantized
    beside = portable.path_beside(path)
    foreign = tmp_path / path.name
    foreign.write_bytes(trained.read_bytes())
    stale = portable.read(beside)
    stale = stale.replace(checkpoint=stale.checkpoint.replace(digest="0" * 64))
    portable.path_beside(foreign).write_text(stale.to_json())
    with pytest.raises(ArtifactError, match="a stale artifact"):
        quantize.quantize(QuantizeConfig(ckpt=foreign, data_dir=data_dir, output_dir=tmp_path, quantize=False), "")


@pytest.mark.slow
def test_a_precision_that_the_processor_lacks_is_said_and_left_out(quantized, data_dir, monkeypatch, capsys):
    path, _ = quantized
    monkeypatch.setattr(openvino_engine, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    config = QuantizeConfig(ckpt=path, data_dir=data_dir, output_dir=path.parent, quantize=False, images=10, threads=1)
    assert [result["precision"] for result in quantize.quantize(config, "")] == ["int8"]
    assert "bf16: not measured: this processor does not compute in bf16" in capsys.readouterr().out


def test_a_precision_within_the_bound_is_told_apart_from_one_beyond_it():
    found = Accuracy(images=1000, top1=0.5, reference_top1=0.502, difference=-0.002, low=-0.01, high=0.006)
    assert quantize.report("int8", found) == (
        "int8: top-1 50.00%, -0.20 points to float32 (-1.00 to +0.60) on 1,000 images: taken unasked"
    )
    assert quantize.report("int8", found.replace(difference=-0.0021)).endswith("only by name")
