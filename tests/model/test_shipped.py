import numpy as np
import pytest
from PIL import Image

from model import load_checkpoint
from model.checkpoint import read_manifest
from model.engines import portable
from model.engines.choice import create_engine
from model.images.prepare import prepare_image
from model.labels import CLASS_NAMES, SUPERCLASSES
from model.manifest import WEIGHTS, Manifest, default_checkpoint_path


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint(default_checkpoint_path())


def test_the_manifest_beside_the_weights_is_the_one_inside_them():
    path = default_checkpoint_path()
    # read as a manifest: fields that are younger than the file take their defaults in both
    assert Manifest.from_json(path.with_suffix(".json").read_text()) == read_manifest(path)


def test_what_ships_is_one_checkpoint_its_manifest_its_int8_artifact_and_the_licence_of_what_it_was_made_from():
    path = default_checkpoint_path()
    artifact = portable.path_beside(path)
    files = {path, path.with_suffix(".json"), artifact, artifact.with_suffix(".xml"), artifact.with_suffix(".bin")}
    assert set(WEIGHTS.iterdir()) == files | {WEIGHTS / "LICENSE-APACHE"}


def test_the_artifact_is_of_the_shipped_checkpoint_and_its_cost_is_measured_and_small(shipped):
    path = portable.path_beside(shipped.path)
    artifact = portable.read(path)
    portable.check_fits(path, artifact, shipped.manifest, shipped.model.config)
    portable.graph_of(path, artifact)
    assert artifact.why_not_unasked("int8") is None


def test_the_shipped_model_merges_and_knows_its_scores_on_the_whole_test_set(shipped):
    manifest = shipped.manifest
    assert manifest.training["test_images"] == 10_000
    assert 0.8 < manifest.scores["top1"] < manifest.scores["top5"] < 1
    assert 0.84 <= manifest.scores["plain_top1"] < manifest.scores["plain_top5"] < 1, "less than the seed claims"
    assert shipped.model.config.merges
    assert (manifest.class_names, manifest.superclasses) == (CLASS_NAMES, SUPERCLASSES)


def test_the_shipped_model_answers_for_a_photo_with_a_score_that_shows_the_picture(shipped):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = 255  # one edge, down the middle
    engine = create_engine(shipped, "eager", "cpu")
    answer = engine.run(prepare_image(Image.fromarray(pixels), engine.native_size)[None])
    assert np.isfinite(answer.logits).all()
    rows, columns = shipped.model.grid
    for score in (answer.frequency_score.reshape(rows, columns), answer.energy.reshape(rows, columns)):
        assert score.min() == 0
        assert 0.9 < score.max() <= 1, "the formula's 1e-6 takes a little of a faint picture"
    assert len(np.unique(answer.source_map)) == shipped.model.schedule[-1]
