import subprocess
import sys

import numpy as np
import pytest
import torch

from model import load_checkpoint, save_checkpoint
from model.engines.choice import create_engine, first_usable
from model.engines.classifier import classifier_of
from model.engines.engine import EngineOutput
from model.engines.torch_engine import TorchEngine, bucket_sizes
from model.errors import EngineError
from model.images.input_stage import InputStage
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "tiny.safetensors"
    save_checkpoint(path, tiny(), preprocess=Preprocess(native_size=16))
    return load_checkpoint(path)


def pictures(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def expected(checkpoint, images):
    stage = InputStage(Preprocess(native_size=16), 48)
    with torch.inference_mode():
        output = tiny()(stage(torch.from_numpy(images)))
    return EngineOutput(*(part.numpy() for part in output[:3]))


def assert_same(found, wanted, tolerance):
    np.testing.assert_allclose(found.logits, wanted.logits, atol=tolerance)
    np.testing.assert_allclose(found.frequency_scores, wanted.frequency_scores, atol=tolerance)
    assert np.array_equal(found.source_maps, wanted.source_maps)


def test_the_eager_engine_answers_as_the_model_on_preprocessed_images(checkpoint):
    engine = create_engine(checkpoint, "eager", "cpu", max_batch_size=4)
    engine.warm_up()
    assert_same(engine.run(pictures(3)), expected(checkpoint, pictures(3)), 1e-5)
    assert (engine.kind, engine.device, engine.precision, engine.reason) == ("eager", "cpu", "fp32", "")


@pytest.mark.slow
def test_the_inductor_engine_agrees_with_eager_at_every_batch_size_and_never_compiles_again(checkpoint):
    program = [sys.executable, "-m", "tests.model.engines.inductor_parity", str(checkpoint.path), "1,2,3"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.stdout == "1 agrees\n2 agrees\n3 agrees\nanother engine warms up beside it\n", done.stderr


def test_compiled_sizes_are_powers_of_two_and_the_largest_batch():
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(6) == (1, 2, 4, 6)
    assert bucket_sizes(256) == (1, 2, 4, 8, 16, 32, 64, 128, 256)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("bf16", 0.2)])
def test_half_precision_answers_as_float32_but_for_rounding(checkpoint, precision, tolerance):
    plain = {"keep_rate": 1.0}  # no merge that rounding could turn round
    path = checkpoint.path
    found = create_engine(load_checkpoint(path, **plain), "eager", "cpu", precision=precision).run(pictures(3))
    wanted = create_engine(load_checkpoint(path, **plain), "eager", "cpu", precision="fp32").run(pictures(3))
    np.testing.assert_allclose(found.logits, wanted.logits, atol=tolerance)
    assert not np.array_equal(found.logits, wanted.logits)


def test_score_and_input_stage_stay_float32_whatever_the_precision(checkpoint):
    classifier = classifier_of(load_checkpoint(checkpoint.path), "bf16")
    assert classifier.model.vit.head.weight.dtype == torch.bfloat16
    assert classifier.model.basis.dtype == classifier.input_stage.resize.dtype == torch.float32


def test_tensorrt_on_a_cpu_gives_way_to_eager_and_says_why_once(checkpoint, caplog):
    caplog.set_level("INFO")
    engine = create_engine(checkpoint, "tensorrt", "cpu")
    reason = "tensorrt cannot be used: it needs a CUDA device, and the device is cpu"
    assert (engine.kind, engine.reason) == ("eager", f"eager: {reason}")
    assert caplog.messages == [f"{reason}; eager takes its place"]


def test_inductor_on_a_cpu_announces_its_minutes_and_eager_has_none_to_announce(checkpoint, caplog):
    caplog.set_level("INFO")
    assert create_engine(checkpoint, "eager", "cpu").kind == "eager"
    assert caplog.messages == []
    assert create_engine(checkpoint, "inductor", "cpu").kind == "inductor"
    [told] = caplog.messages
    assert "takes minutes" in told


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_engine_names_its_precision(checkpoint, precision):
    assert create_engine(load_checkpoint(checkpoint.path), "eager", "cpu", precision=precision).precision == precision


@pytest.mark.parametrize(
    ("broken", "wanted", "kind", "reason"),
    [
        ([], "fast", "fast", ""),
        ([], "auto", "fast", "fast: the best that this device and these packages have"),
        (["fast"], "fast", "usual", "usual: fast is broken"),
        (["fast", "usual"], "auto", "plain", "plain: fast is broken; usual is broken"),
    ],
)
def test_an_engine_that_fails_gives_way_to_the_next_one_and_the_reason_says_so(
    checkpoint, caplog, broken, wanted, kind, reason
):
    def make(taken, why):
        if taken in broken:
            raise EngineError(f"{taken} is broken")
        return TorchEngine(classifier_of(checkpoint), taken, torch.device("cpu"), 1, why)

    made = first_usable(("fast", "usual", "plain"), wanted, make)
    assert (made.kind, made.reason) == (kind, reason)
    told = ["fast is broken; trying usual instead", "usual is broken; trying plain instead"]
    assert caplog.messages == told[: len(broken)]


def test_an_unknown_precision_is_refused(checkpoint):
    with pytest.raises(EngineError, match="expected one of auto, fp32, fp16, bf16, int8, found 'int4'"):
        create_engine(checkpoint, "eager", "cpu", precision="int4")


def test_answers_are_plain_arrays_of_the_stated_types(checkpoint):
    output = create_engine(checkpoint, "eager", "cpu").run(pictures(2))
    assert (output.logits.dtype, output.logits.shape) == (np.float32, (2, 100))
    assert (output.frequency_scores.dtype, output.frequency_scores.shape) == (np.float32, (2, 2, 36))
    assert (output.frequency_score.shape, output.energy.shape) == ((2, 36), (2, 36))
    assert (output.source_maps.dtype, output.source_maps.shape) == (np.int64, (2, 2, 36))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((1, 3, 16, 16), np.float32), "found float32"),
        (np.zeros((3, 16, 16), np.uint8), r"found uint8 \[3, 16, 16\]"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"expected uint8 images \[batch, 3, 16, 16\]"),
        (np.zeros((0, 3, 16, 16), np.uint8), r"expected 1\.\.4 images, found 0"),
        (np.zeros((5, 3, 16, 16), np.uint8), r"expected 1\.\.4 images, found 5; split the batch"),
    ],
)
def test_a_batch_of_another_shape_is_refused(checkpoint, images, words):
    with pytest.raises(EngineError, match=words):
        create_engine(checkpoint, "eager", "cpu", max_batch_size=4).run(images)


@pytest.mark.parametrize(
    ("kind", "device", "words"),
    [
        ("warp", "cpu", "expected one of auto, eager, inductor, openvino, tensorrt, found 'warp'"),
        ("eager", "cuda:99", "expected a CUDA device below|this torch sees no CUDA device"),
        ("eager", "tpu", "expected auto, cpu, cuda or cuda:N, found 'tpu'"),
        ("eager", "meta", "expected auto, cpu, cuda or cuda:N, found 'meta'"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused(checkpoint, kind, device, words):
    with pytest.raises(EngineError, match=words):
        create_engine(checkpoint, kind, device)
