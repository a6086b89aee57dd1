import json
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from model import export, load_checkpoint, save_checkpoint
from model.engines import agreement, onnx_graph
from model.engines.choice import create_engine
from model.engines.engine import EngineOutput
from model.errors import EngineError
from model.images.preprocess import Preprocess
from service.api.oip import metadata
from tests.model.tiny import tiny
from tests.support import forked
from tests.support.doubles import FakeEngine, served

PROGRAM = """
import sys
from model import export
ckpt, merging, plain = sys.argv[1:]
flags = ["--engine", "onnx", "--ckpt", ckpt]
export.main([*flags, "--out", merging])
export.main([*flags, "--out", plain, "--keep_rate", "1"])
export.main([*flags, "--out", merging, "--precision", "fp16"])
"""
"""In a process of its own: the shape checks of the test run cannot be exported."""

FOLDERS = {"merging": {}, "plain": {"keep_rate": 1.0}}
"""By the folder that an export went into, what was asked of the checkpoint."""


class OnnxRuntime:
    """A file, run by ONNX Runtime on one thread of the CPU, as an engine."""

    kind = "onnx"
    native_size = 16

    def __init__(self, path, precision):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.precision = precision
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def named(self, images):
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {"pixels": images}), strict=True))

    def run(self, images):
        answer = self.named(images)
        scores = np.stack([answer["frequency_score"], answer["energy"]], axis=1)
        return EngineOutput(answer["logits"], scores, answer["source_maps"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    save_checkpoint(folder / "tiny.safetensors", tiny(), preprocess=Preprocess(native_size=16))
    paths = [str(folder / name) for name in ("tiny.safetensors", *FOLDERS)]
    done = forked.run("-c", PROGRAM, *paths)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()


def both(written, name, precision):
    """The file in ONNX Runtime, and eager in the same precision."""
    folder, _ = written
    checkpoint = load_checkpoint(folder / "tiny.safetensors", **FOLDERS[name])
    eager = create_engine(checkpoint, "eager", "cpu", max_batch_size=300, precision=precision)
    return OnnxRuntime(folder / name / f"tiny-{precision}.onnx", precision), eager


def pictures(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def element_types(path):
    """By kind of operator, the element types of the first inputs."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    known |= {value.name: value.data_type for value in graph.initializer}
    found = {}
    for node in graph.node:
        found.setdefault(node.op_type, set()).add(known[node.input[0]])
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FOLDERS)
def test_onnx_runtime_answers_as_eager_at_every_batch_size_with_and_without_merging(written, name):
    found, eager = both(written, name, "fp32")
    for size in (1, 3, 17, 300):
        answer, wanted = found.run(pictures(size)), eager.run(pictures(size))
        np.testing.assert_allclose(answer.logits, wanted.logits, atol=1e-4)
        np.testing.assert_allclose(answer.frequency_scores, wanted.frequency_scores, atol=1e-4)
        assert np.array_equal(answer.source_maps, wanted.source_maps)
        assert [part.dtype for part in answer] == [np.float32, np.float32, np.int64]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_half_precision_onnx_runtime_agrees_with_eager_within_the_bounds_of_every_engine(written):
    found, eager = both(written, "merging", "fp16")
    agreement.check(found, eager, (1, 3, 17))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_half_precision_the_merging_is_decided_and_its_sizes_are_kept_in_float32(written):
    folder, _ = written
    types = element_types(folder / "merging" / "tiny-fp16.onnx")
    decided = {name: types[name] for name in ("TopK", "ReduceL2", "Pow", "ReduceMin", "Log", "Round")}
    # partners and sources, cosine, energy, its scale, token sizes, source maps
    assert decided == {name: {TensorProto.FLOAT} for name in decided}
    assert types["Conv"] == types["LayerNormalization"] == {TensorProto.FLOAT16}
    assert types["MatMul"] == {TensorProto.FLOAT, TensorProto.FLOAT16}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inputs_and_outputs_are_those_of_the_inference_protocol_by_name_type_and_shape(written):
    folder, _ = written
    manifest = load_checkpoint(folder / "tiny.safetensors").manifest
    model = replace(served(FakeEngine()), manifest=manifest, grid=(6, 6))
    session = onnxruntime.InferenceSession(folder / "merging" / "tiny-fp32.onnx")
    types = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32", "tensor(int64)": "INT64"}
    described = {
        value.name: (types[value.type], (-1, *value.shape[1:]))
        for value in (*session.get_inputs(), *session.get_outputs())
    }
    assert {value.shape[0] for value in (*session.get_inputs(), *session.get_outputs())} == {"batch"}
    assert described.pop("source_maps") == ("INT64", (-1, 2, 36))
    offered = {
        tensor.name: (tensor.datatype, tensor.shape) for tensor in (*metadata.inputs(model), *metadata.outputs(model))
    }
    assert described == {name: offered[name] for name in described}
    assert set(offered) - set(described) == {"image", "label", "probabilities"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_source_map_is_that_of_the_last_merging_block(written):
    answer = both(written, "merging", "fp32")[0].named(pictures(3))
    assert np.array_equal(answer["source_map"], answer["source_maps"][:, -1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_file_is_written_which_says_what_it_is_of_and_nothing_about_the_machine(written):
    folder, printed = written
    files = ["merging/tiny-fp32.onnx", "plain/tiny-fp32.onnx", "merging/tiny-fp16.onnx"]
    assert printed == [str(folder / name) for name in files]
    assert {path for path in folder.rglob("*") if path.is_file()} == {
        folder / name for name in ("tiny.safetensors", *files)
    }
    loaded = onnx.load(printed[1])
    onnx.checker.check_model(loaded, full_check=True)
    told = {entry.key: entry.value for entry in loaded.metadata_props}
    manifest = load_checkpoint(folder / "tiny.safetensors").manifest
    assert (told["checkpoint"], told["digest"], told["precision"]) == ("tiny", manifest.digest, "fp32")
    assert json.loads(told["config"])["keep_rate"] == 1.0
    assert tuple(json.loads(told["class_names"])) == manifest.class_names
    assert b".py" not in loaded.SerializeToString()  # torch notes the stack behind every node


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--precision bf16", "it is written in fp32 or fp16, and the precision is bf16"),
        ("--precision int8", "it is written in fp32 or fp16, and the precision is int8"),
    ],
)
def test_another_precision_is_refused_before_anything_is_loaded(tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit):
        export.main(f"--engine onnx {flags} --ckpt {tmp_path}/none --out {tmp_path}".split())
    assert words in capsys.readouterr().err


def test_no_file_is_exported_on_a_gpu():
    assert onnx_graph.why_not("cuda:0", "fp32") == "it is exported on a CPU, and the device is cuda:0"


def test_without_the_packages_the_error_says_how_to_install_them_and_nothing_is_written(
    checkpoint, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match=r"not installed: onnxscript \(pip install 'freqmerge\[onnx\]'\)"):
        onnx_graph.write(tmp_path / "out", checkpoint)
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_the_file_that_was_there(checkpoint, monkeypatch, tmp_path):
    def unwritable(*_):
        raise EngineError("onnx: tiny could not be exported: no")

    (tmp_path / "tiny-fp32.onnx").write_text("before")
    monkeypatch.setattr(onnx_graph, "graph", unwritable)
    with pytest.raises(EngineError, match="could not be exported"):
        onnx_graph.write(tmp_path, checkpoint)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
