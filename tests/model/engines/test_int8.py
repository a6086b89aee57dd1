import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model import export, processor
from model.checkpoint import load_checkpoint, save_checkpoint
from model.engines import openvino_engine, portable, quantization
from model.engines.choice import create_engine
from model.engines.engine import EngineOutput
from model.engines.portable import Accuracy
from model.errors import ArtifactError, EngineError
from model.images.preprocess import Preprocess
from tests.model.tiny import tiny
from tests.support.int8 import pictures

SMALL_LOSS = Accuracy(images=10_000, top1=0.5, reference_top1=0.5005, difference=-0.0005, low=-0.003, high=0.002)
"""Within the bound."""


@pytest.fixture(scope="module")
def exported(int8_export):
    """A tiny checkpoint with its int8 artifact beside it, and what the export printed."""
    return int8_export


@pytest.fixture
def copied(exported, tmp_path):
    """The same, to be changed: the path of the checkpoint."""
    for file in exported[0].parent.glob("tiny.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "tiny.safetensors"


def changed(path, **fields):
    """Gives the artifact of this checkpoint other fields."""
    beside = portable.path_beside(path)
    files_text = portable.read(beside).replace(**fields).to_json()
    beside.write_text(files_text)


def engine_of(path, precision="auto", **overrides):
    return create_engine(load_checkpoint(path, **overrides), "auto", "cpu", max_batch_size=9, precision=precision)


@pytest.mark.slow
def test_an_export_is_three_files_beside_each_other_and_says_what_it_was_calibrated_on(exported):
    path, printed = exported
    beside = portable.path_beside(path)
    assert [Path(line) for line in printed] == [beside, beside.with_suffix(".xml"), beside.with_suffix(".bin")]
    found = portable.read(beside)
    assert found.calibration == {"images": 20, "source": "20 pictures of pictures"}
    assert found.checkpoint == load_checkpoint(path).manifest


@pytest.mark.slow
def test_linear_layers_and_nothing_else_are_quantized(exported):
    beside = portable.path_beside(exported[0])
    graph = portable.graph_of(beside, portable.read(beside))
    fed = [
        node.get_friendly_name()
        for node in graph.get_ordered_ops()
        if node.get_type_name() in ("MatMul", "Convolution", "ScaledDotProductAttention")
        and any("FakeQuantize" in source(port).get_type_name() for port in node.inputs())
    ]
    blocks = len(load_checkpoint(exported[0]).model.vit.blocks)
    assert len(fed) == 4 * blocks, "queries, keys and values together; the projection; two layers of the MLP"
    assert all(name.startswith("linear") for name in fed)


def source(port):
    return port.get_source_output().get_node()


@pytest.mark.slow
def test_int8_by_name_answers_as_float32_but_for_rounding_at_every_batch_size(exported):
    taken = engine_of(exported[0], "int8")
    assert (taken.kind, taken.precision, taken.device) == ("openvino", "int8", "cpu")
    eager = create_engine(load_checkpoint(exported[0]), "eager", "cpu", max_batch_size=9)
    for size in (1, 2, 9):
        found, wanted = taken.run(pictures(size)), eager.run(pictures(size))
        spread = np.linalg.norm(wanted.logits - wanted.logits.mean(axis=1, keepdims=True))
        assert 0 < np.linalg.norm(found.logits - wanted.logits) < 0.25 * spread
        assert (found.source_maps.max(axis=2) == wanted.source_maps.max(axis=2)).all()


@pytest.mark.slow
def test_auto_leaves_int8_whose_cost_nobody_measured_and_says_so(exported):
    taken = engine_of(exported[0])
    assert (taken.kind, taken.precision) == ("openvino", "fp32")
    assert "what int8 costs in accuracy was not measured" in taken.reason


@pytest.fixture(autouse=True)
def vnni(monkeypatch):
    """A processor with instructions for 8-bit products, whichever this one is."""
    monkeypatch.setattr(processor, "cpu_features", lambda: ("avx2", "avx512_vnni"))


@pytest.mark.slow
def test_auto_leaves_int8_where_the_processor_has_no_instructions_for_it(copied, monkeypatch):
    changed(copied, accuracy={"int8": SMALL_LOSS})
    monkeypatch.setattr(processor, "cpu_features", lambda: ("avx2",))
    taken = engine_of(copied)
    assert taken.precision == "fp32"
    assert "int8 would be no faster: this processor has no instructions for 8-bit products" in taken.reason
    assert engine_of(copied, "int8").precision == "int8"


@pytest.mark.slow
def test_auto_takes_int8_whose_cost_is_measured_and_small(copied):
    changed(copied, accuracy={"int8": SMALL_LOSS})
    taken = engine_of(copied)
    assert (taken.kind, taken.precision) == ("openvino", "int8")


@pytest.mark.slow
def test_auto_leaves_int8_that_costs_too_much_and_says_how_much(copied):
    changed(copied, accuracy={"int8": SMALL_LOSS.replace(difference=-0.0031)})
    taken = engine_of(copied)
    assert taken.precision == "fp32"
    assert "int8 costs 0.31 points of top-1 on 10,000 images, more than 0.2" in taken.reason


def damage(path):
    part = portable.path_beside(path).with_suffix(".bin")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def cut_short(path):
    part = portable.path_beside(path).with_suffix(".xml")
    part.write_bytes(part.read_bytes()[:-100])


def scribble(path):
    portable.path_beside(path).write_text("{}")


def other_format(path):
    changed(path, format=2)


def train_on(path):
    model = load_checkpoint(path).model
    model.vit.head.bias.data += 1
    save_checkpoint(path, model, preprocess=Preprocess(native_size=16))


def answer_otherwise(path):
    found = portable.read(portable.path_beside(path))
    wanted = portable.unpacked(found.reference)
    changed(path, reference=portable.packed(wanted._replace(logits=wanted.logits[::-1])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (damage, "cut short or changed; export it again"),
        (cut_short, "cut short or changed; export it again"),
        (scribble, "expected a portable artifact, found"),
        (other_format, "expected artifact format 1, found 2; export it again"),
        (train_on, "a stale artifact: expected checkpoint"),
        (answer_otherwise, "expected the answers of eager float32"),
    ],
)
def test_a_damaged_foreign_or_stale_artifact_gives_way_to_float32_aloud(copied, caplog, break_it, said):
    changed(copied, accuracy={"int8": SMALL_LOSS})
    break_it(copied)
    taken = engine_of(copied)
    assert (taken.kind, taken.precision) == ("openvino", "fp32")
    assert said in taken.reason
    assert said in caplog.text


@pytest.mark.slow
def test_an_artifact_of_another_keep_rate_is_not_taken(exported):
    taken = engine_of(exported[0], "int8", keep_rate=0.9)
    assert taken.precision == "fp32"
    assert "an artifact of another config: keep_rate expected 0.9, found" in taken.reason


@pytest.mark.slow
def test_a_compiled_artifact_is_kept_and_another_one_of_the_same_checkpoint_is_compiled_anew(copied, tmp_path):
    beside, cache = portable.path_beside(copied), tmp_path / "cache"
    for _ in range(2):
        portable.create(beside, portable.read(beside), 4, cache, 1)
        assert len(list(cache.glob("*.engine"))) == 1
    beside.with_suffix(".xml").write_bytes(beside.with_suffix(".xml").read_bytes() + b"\n")
    found = portable.read(beside)
    portable.write(
        beside,
        found.model_dump(exclude={"graph_sha256", "weights_sha256"}),
        beside.with_suffix(".xml").read_bytes(),
        beside.with_suffix(".bin").read_bytes(),
    )
    portable.create(beside, portable.read(beside), 4, cache, 1)
    assert len(list(cache.glob("*.engine"))) == 2


@pytest.mark.slow
def test_an_artifact_runs_where_torch_is_not_installed(exported):
    program = """
import sys
for name in ("torch", "timm", "torchvision", "matplotlib", "pyarrow"):
    sys.modules[name] = None
from pathlib import Path
from model.engines import agreement, portable
path = Path(sys.argv[1])
engine = portable.create(path, portable.read(path), 4, None, 1)
print(engine.run(agreement.pictures(16)).logits.shape)
"""
    command = [sys.executable, "-c", program, str(portable.path_beside(exported[0]))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 100)"


def test_answers_keep_their_values_as_text():
    answers = EngineOutput(np.float32([[1.5, -2]]), np.float32([[[0.25], [0.5]]]), np.int64([[[0]]]))
    for part, wanted in zip(portable.unpacked(portable.packed(answers)), answers, strict=True):
        np.testing.assert_array_equal(part, wanted)
        assert part.dtype == wanted.dtype
    with pytest.raises(ArtifactError, match="expected answers of eager float32"):
        portable.unpacked("no such thing")


def test_quantizing_needs_nncf_and_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(EngineError, match=r"nncf is not installed \(pip install 'freqmerge\[int8\]'\)"):
        quantization.quantized(None, pictures(2))


def test_a_folder_without_pictures_calibrates_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(EngineError, match=f"found none among 1 files of {tmp_path}"):
        quantization.pictures(tmp_path, 16)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--engine openvino --precision int8", "calibration: expected a folder of training pictures, found none"),
        ("--engine tensorrt --precision int8", "expected fp16, bf16 or fp32 with tensorrt, found int8"),
    ],
)
def test_an_export_to_int8_that_cannot_be_says_why(tmp_path, capsys, flags, said):
    save_checkpoint(tmp_path / "tiny.safetensors", tiny(), preprocess=Preprocess(native_size=16))
    with pytest.raises(SystemExit):
        export.main([*flags.split(), "--ckpt", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path)])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["eager", "inductor"])
def test_torch_engines_refuse_int8(exported, kind):
    with pytest.raises(EngineError, match=f"expected fp32, fp16 or bf16 with {kind}, found 'int8'; take openvino"):
        create_engine(load_checkpoint(exported[0]), kind, "cpu", precision="int8")


def test_a_processor_without_bf16_is_told_so(monkeypatch):
    monkeypatch.setattr(openvino_engine, "capabilities", lambda: frozenset({"FP32", "INT8"}))
    assert openvino_engine.why_not("cpu", "bf16") == "this processor does not compute in bf16 (AVX512-BF16 or AMX)"
    assert openvino_engine.why_not("cpu", "int8") is None


def test_a_processor_with_bf16_may_use_it(monkeypatch):
    monkeypatch.setattr(openvino_engine, "capabilities", lambda: frozenset({"FP32", "INT8", "BF16"}))
    assert openvino_engine.why_not("cpu", "bf16") is None
